"""Access to the service: the token of a request, and the web pages that may not send one."""

from __future__ import annotations

import hmac
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tmi.runtime.service.request_errors import RequestError
from tmi.toolkit.errors import UsageError
from tmi.toolkit.storage.bounded_files import SETTINGS_BYTES, read_bytes

if TYPE_CHECKING:
    from starlette.datastructures import Headers

    from tmi.runtime.service.service import ServiceSettings

MIN_TOKEN = 16
"""Smallest length of a token."""


def read_token(path: Path) -> bytes:
    """Return the token of a file: its only line.

    Raises:
        UsageError: the file cannot be read, or holds no usable token.
    """
    try:
        token = read_bytes(path, max_bytes=SETTINGS_BYTES).strip()
    except OSError as error:
        raise UsageError(f"token file {path} cannot be read: {error.strerror}", fix="correct the path") from error
    if len(token) < MIN_TOKEN or not all(33 <= byte < 127 for byte in token):
        raise UsageError(
            f"token file {path} holds no token of at least {MIN_TOKEN} printable characters",
            fix="write one: openssl rand -hex 32",
        )
    return token


def foreign_request(settings: ServiceSettings, headers: Headers) -> RequestError | None:
    """Error of an HTTP request that comes from a page of another origin, or names another host."""
    host, origin = headers.get("host", ""), headers.get("origin")
    is_foreign = origin is not None and urlsplit(origin).netloc != host
    if is_foreign or (settings.hosts is not None and _name(host) not in settings.hosts):
        return RequestError(
            "foreign-origin",
            "the request comes from a page of another origin, or names another host",
            fix="call the service by its own address, and not from a web page",
        )
    return None


def missing_token(settings: ServiceSettings, authorization: str) -> RequestError | None:
    """Error of a request without the token.

    Args:
        settings: settings of the service.
        authorization: header or metadata `authorization` of the request; empty: none.
    """
    if settings.token is None:
        return None
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1", "replace"), settings.token):
        return None
    return RequestError(
        "unauthorized",
        "the request has no valid token",
        fix="send the header Authorization: Bearer TOKEN",
        headers={"www-authenticate": "Bearer"},
    )


def _name(host: str) -> str:
    """Name of a host without its port."""
    return host.rpartition(":")[0] if re.search(r":\d+$", host) else host
