"""Client of a service: sends the files of a case folder to `POST /cases` and returns the result. Standard library only.

No proxy of the environment is used: the files hold patient data and go to the named host alone.
"""

from __future__ import annotations

import http.client
import ssl
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tmi.runtime.engines.selection import EngineRecord
from tmi.runtime.serving.results import SCHEMA, CaseResult, RejectedCase, result_from_json
from tmi.toolkit.cases.case import (
    CASE_RECORD_FILE,
    CLINICAL_FILE,
    CT_FILE,
    MASK_FILE,
    RADIOMICS_FILE,
    RADIOMICS_RECORD_FILE,
    Case,
    format_label,
    missing_case_error,
    reading,
)
from tmi.toolkit.errors import InputRejectedError, TmiError, UnavailableError, UsageError
from tmi.toolkit.storage.bounded_files import open_regular
from tmi.toolkit.storage.documents import DocumentError, parse_json
from tmi.toolkit.storage.serialization import from_json
from tmi.toolkit.storage.terminal_text import printable

FILES = (CT_FILE, MASK_FILE, RADIOMICS_FILE, RADIOMICS_RECORD_FILE, CLINICAL_FILE, CASE_RECORD_FILE)
MAX_RESPONSE = 64 * 2**20
"""Largest response in bytes."""
QUEUE_FULL, REJECTED = 429, 422
AVAILABLE_LATER = frozenset({408, 500, 502, 503, 504})
"""Statuses of a request that may succeed when it is sent again."""
CHECK_URL_FIX = "give the address of `tmi serve`: --server http://HOST:PORT"


@dataclass(frozen=True, kw_only=True)
class ServedFold:
    """A fold of a bundle, as a document names it."""

    fold: int
    """Its number in the run."""


@dataclass(frozen=True, kw_only=True)
class ServedManifest:
    """What a document states of the manifest."""

    classes: tuple[str, ...]
    """Names of the classes."""
    positive: int
    """Index of the positive class."""
    folds: tuple[ServedFold, ...]
    """The folds."""
    threshold: float
    """Threshold of the decision."""
    synthetic: bool
    """Whether the bundle was trained on synthetic cases."""


@dataclass(frozen=True, kw_only=True)
class ServedBundle:
    """The bundle of a service."""

    digest: str
    """SHA-256 of its manifest."""
    manifest: ServedManifest
    """What the document states of its manifest."""


@dataclass(frozen=True, kw_only=True)
class ServedDocument:
    """A `tmi-prediction` document of one case."""

    values: Mapping[str, Any]
    """The document."""
    bundle: ServedBundle
    """The bundle that predicted the case."""
    engine: EngineRecord
    """The engine that predicted it."""


@dataclass(frozen=True, kw_only=True)
class ServedResult:
    """The response for one case."""

    result: CaseResult
    """Its prediction or rejection."""
    document: ServedDocument | None
    """The document of the response; None for a case that was rejected without one."""


@dataclass(frozen=True, kw_only=True)
class ServiceClient:
    """Sends cases to a service; may be used by several threads.

    Raises:
        UsageError: the URL is none of a service.
    """

    url: str
    """`http://HOST:PORT` or `https://HOST:PORT`, with the path of a proxy if there is one."""
    token: str | None = field(default=None, repr=False)
    """Token of the service."""
    tls: ssl.SSLContext | None = None
    """Authorities and certificate of the client; None: those of the system, and none."""
    timeout_s: float = 330.0
    """Seconds that a response may take, and that a full queue is waited for."""

    def __post_init__(self) -> None:
        """Reject a URL that is none of a service."""
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or port == 0
            or parts.query
            or "@" in parts.netloc
        ):
            raise UsageError("the address of the service is no URL of a host", fix=CHECK_URL_FIX)

    def predict(self, case: Case) -> ServedResult:
        """Send a case and wait for its result; while the queue is full, it is sent again.

        Raises:
            UsageError: the service does not accept the request.
            UnavailableError: the service cannot be reached, or gives no result.
        """
        try:
            body, kind = _form(case)
        except InputRejectedError as error:
            return ServedResult(result=RejectedCase.of(error, case.case_id), document=None)
        end = time.monotonic() + self.timeout_s
        while True:
            status, headers, data = self._send(body, kind, case.case_id)
            if status != QUEUE_FULL:
                return _result(status, data, case.case_id)
            seconds = headers.get("retry-after", "1")
            pause = float(seconds) if seconds.isdecimal() and len(seconds) < 5 else 1.0
            if time.monotonic() + pause > end:
                raise UnavailableError("the queue of the service is full", fix="try again later", case_id=case.case_id)
            time.sleep(pause)

    def _send(self, body: bytes, kind: str, case_id: str) -> tuple[int, Mapping[str, str], bytes]:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = self.tls or ssl.create_default_context()
            connection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=self.timeout_s, context=context
            )
        else:
            connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=self.timeout_s)
        headers = {"Content-Type": kind, **({"Authorization": f"Bearer {self.token}"} if self.token else {})}
        try:
            connection.request("POST", f"{parts.path.rstrip('/')}/cases", body=body, headers=headers)
            response = connection.getresponse()
            named = {name.lower(): value for name, value in response.getheaders()}
            return response.status, named, response.read(MAX_RESPONSE)
        except ssl.SSLError as error:
            raise UsageError(
                f"the service and this client do not trust each other: {error.reason or type(error).__name__}",
                fix="give the authority of its certificate (--tls-ca), and a client certificate if it needs one",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise UnavailableError(
                f"the service at {printable(parts.netloc)} gives no response: {reason}",
                fix="check that `tmi serve` runs there and can be reached",
                case_id=case_id,
            ) from error
        finally:
            connection.close()


def _form(case: Case) -> tuple[bytes, str]:
    """Files of a case as multipart/form-data, and its content type.

    Raises:
        InputRejectedError: the folder does not exist, or a file cannot be read.
    """
    if not case.folder.is_dir():
        raise missing_case_error(case.folder, case.case_id, fix="give the path of a case folder")
    parts: dict[str, bytes] = {"case_id": case.case_id.encode()}
    if case.mask_label is not None:
        parts["mask_label"] = format_label(case.mask_label).encode()
    with reading(case.case_id):
        for name in FILES:
            if (case.folder / name).exists():
                with open_regular(case.folder / name) as stream:
                    parts[name] = stream.read()
    boundary = uuid.uuid4().hex
    pieces: list[bytes] = []
    for name, data in parts.items():
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
        pieces += [head.encode(), data, b"\r\n"]
    return b"".join((*pieces, f"--{boundary}--\r\n".encode())), f"multipart/form-data; boundary={boundary}"


def _result(status: int, data: bytes, case_id: str) -> ServedResult:
    """Result of a response.

    Raises:
        UsageError: the request was not accepted, or this is no service of `tmi`.
        UnavailableError: the service gave no result, or that of another case.
    """
    try:
        document = parse_json(data)
    except DocumentError:
        document = None
    if not isinstance(document, dict):
        raise _no_service(status, case_id)
    if status in (200, REJECTED) and "schema" in document:
        if document["schema"] != SCHEMA:
            raise UsageError(
                f"the service writes {printable(str(document['schema']))[:40]}, and this version reads {SCHEMA}",
                fix="use the same version of tmi on both machines",
            )
        try:
            (entry,) = document["results"]
            served = ServedResult(result=result_from_json(entry), document=_document(document))
        except (KeyError, ValueError, TypeError, UsageError) as error:
            raise _no_service(status, case_id) from error
        if served.result.case_id != case_id:  # a proxy that caches or mixes responses
            raise UnavailableError(
                "the response is one for another case", fix="call the service without a proxy", case_id=case_id
            )
        return served
    what, code, fix = (document.get(key) for key in ("error", "code", "fix"))
    if not isinstance(what, str) or not isinstance(code, str) or not isinstance(fix, str):
        raise _no_service(status, case_id)
    if status == REJECTED:
        return ServedResult(result=RejectedCase(case_id=case_id, code=code, what=what, fix=fix), document=None)
    kind: type[TmiError] = UnavailableError if status in AVAILABLE_LATER else UsageError
    fix = "give the token of the service: --token-file" if code == "unauthorized" else fix
    raise kind(f"the service gave no prediction ({status} {code}): {what}", fix=fix, case_id=case_id)


def _document(values: Mapping[str, Any]) -> ServedDocument:
    """The document with its bundle and engine.

    Raises:
        KeyError, ValueError, TypeError, UsageError: it is malformed.
    """
    stated = values["bundle"]
    classes = tuple(stated["classes"])
    manifest = ServedManifest(
        classes=classes,
        positive=classes.index(stated["positive"]),
        folds=tuple(ServedFold(fold=number) for number in stated["folds"]),
        threshold=stated["threshold"],
        synthetic=stated["synthetic"],
    )
    return ServedDocument(
        values=values,
        bundle=ServedBundle(digest=stated["digest"], manifest=manifest),
        engine=from_json(EngineRecord, values["engine"], where="engine"),
    )


def _no_service(status: int, case_id: str) -> TmiError:
    kind: type[TmiError] = UnavailableError if status in AVAILABLE_LATER else UsageError
    return kind(f"the response (status {status}) is none of `tmi serve`", fix=CHECK_URL_FIX, case_id=case_id)


def client_tls(authority: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """Return the TLS settings of a client.

    Args:
        authority: authority (PEM) of the service's certificate; None: those of the system.
        certificate: certificate of the client (PEM); None: none.
        key: its private key (PEM).

    Raises:
        UsageError: a file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=authority)
        if certificate is not None:
            context.load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
        raise UsageError(
            f"the authority, the certificate or its key cannot be used: {reason}",
            fix="give PEM files that belong together, with a key without a passphrase",
        ) from error
    return context
