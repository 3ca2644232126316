"""One log record and the counters of each request, over HTTP or gRPC.

No record and no metric holds content of a request: a failure is named by its type and place, because its text may quote
a file.
"""

from __future__ import annotations

import re
import traceback
import uuid
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

from tmi.runtime.service.metrics import ServiceMetrics

LogRecord = Callable[[str, Mapping[str, Any]], None]
"""Receives the level (`info`, `error`) and the fields of a record."""
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""A request id of a client that is taken over."""


class ObservedRequest:
    """One request from its first byte to its response.

    Args:
        metrics: counters of the service.
        log: receives the record.
        given_id: request id of the client; another one is made if it is none.
    """

    def __init__(self, metrics: ServiceMetrics, log: LogRecord, given_id: str) -> None:
        self._metrics, self._log, self._start = metrics, log, perf_counter()
        self.id = given_id if REQUEST_ID.fullmatch(given_id) else uuid.uuid4().hex
        """Id in the log and in the response."""

    def end(
        self,
        *,
        method: str,
        route: str,
        status: int | str,
        code: str,
        size: int | None = None,
        failure: BaseException | None = None,
        is_probe: bool = False,
    ) -> None:
        """Count the request and log it.

        Args:
            method: `GET`, `HEAD`, `POST`, `other` or `gRPC`.
            route: path or method of the service.
            status: status of the response.
            code: `ok`, code of the error, or code of the check that rejected the case.
            size: bytes of the body; None: it was not read.
            failure: a fault of the program.
            is_probe: whether it is logged only if it failed.
        """
        seconds = perf_counter() - self._start
        self._metrics.count_request(route, status, code, seconds)
        if is_probe and failure is None:
            return
        fields: dict[str, Any] = {
            "event": "request",
            "request_id": self.id,
            "method": method,
            "route": route,
            "status": status,
            "code": code,
            "seconds": round(seconds, 4),
            **({} if size is None else {"bytes": size}),
        }
        if failure is not None:
            frames = traceback.extract_tb(failure.__traceback__)[-4:]
            fields["failure"] = type(failure).__name__
            fields["at"] = [f"{frame.name}:{frame.lineno}" for frame in frames]
        self._log("info" if failure is None else "error", fields)
