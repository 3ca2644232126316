"""Errors of a request that is not predicted: a stable code, its HTTP status, what is wrong and how to fix it.

A case that is rejected is no error of the request: it has status 422 and the code of its check (docs/checks.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

REJECTED = 422
"""Status of a case that a check rejected."""
GONE = 499
"""Status in logs and metrics of a request whose client closed the connection; nobody receives it."""
STATUS_OF: Mapping[str, int] = MappingProxyType(
    {
        "bad-request": 400,
        "unauthorized": 401,
        "foreign-origin": 403,
        "not-found": 404,
        "method-not-allowed": 405,
        "body-timeout": 408,
        "load-running": 409,
        "bundle-rejected": 409,
        "too-large": 413,
        "encoding-unsupported": 415,
        "queue-full": 429,
        "client-gone": GONE,
        "failed": 500,
        "deadline": 504,
    }
)
"""Code of an error of a request -> its status (docs/serve.md)."""


class RequestError(Exception):
    """A request that is not predicted.

    Args:
        code: key of `STATUS_OF`.
        what: one sentence that states the problem, without content of the request.
        fix: one sentence that states how to fix it.
        headers: further headers of the response.
    """

    def __init__(self, code: str, what: str, *, fix: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(what)
        self.code, self.what, self.fix = code, what, fix
        self.status = STATUS_OF[code]
        self.headers = dict(headers or {})

    def to_dict(self) -> dict[str, Any]:
        """Document of the error; `error` is the key of the Open Inference Protocol."""
        return {"error": self.what, "code": self.code, "fix": self.fix, "issues": []}


def bad_request(what: str, *, fix: str) -> RequestError:
    """Return the error of a request that does not follow the protocol."""
    return RequestError("bad-request", what, fix=fix)


def no_load_parameters() -> RequestError:
    """Return the error of a load that would set where the bundle comes from, or how it is read."""
    return bad_request("a load takes no parameters", fix="replace the bundle in the service's folder, then load it")
