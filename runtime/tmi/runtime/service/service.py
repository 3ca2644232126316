"""The service without HTTP: settings, admission of cases, prediction through the queue, tensors and documents."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.selection import EngineRecord
from tmi.runtime.service.case_queue import CaseQueue, DeadlineError
from tmi.runtime.service.metrics import ServiceMetrics
from tmi.runtime.service.outputs import (
    MODEL,
    MODEL_VERSION,
    input_metadata,
    output_metadata,
    output_tensors,
    result_document,
)
from tmi.runtime.service.protocol import InferRequest, Tensor, require_known
from tmi.runtime.service.request_errors import RequestError
from tmi.runtime.serving.results import CaseResult, Prediction
from tmi.toolkit.cases.case import Case

EXTENSIONS = ("binary_tensor_data",)
"""Extensions of the protocol that the service has."""
MAX_RETRY_S = 60
"""Largest value of `Retry-After`."""
PredictCases = Callable[[Sequence[Case]], Iterator[CaseResult]]
"""Yields the result of each case, in order."""


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """Limits and access of a service."""

    max_batch: int = 4
    """Largest number of cases that are taken from the queue together."""
    max_delay_s: float = 0.0
    """Seconds that the first of them waits for more."""
    queue: int = 16
    """Number of cases that may wait beside those of one batch; more are rejected with status 429."""
    max_request_bytes: int = 256 * 2**20
    """Largest body of a request."""
    timeout_s: float = 300.0
    """Seconds from the beginning of a request to its response."""
    idle_s: float = 30.0
    """Seconds that a client may send nothing, while its request is incomplete or before its first one."""
    token: bytes | None = None
    """Token that a request must carry; None: none."""
    hosts: frozenset[str] | None = None
    """Names of the server that a request may give; None: any."""


class PredictionService:
    """A bundle whose cases are predicted by one worker.

    Args:
        bundle: the bundle.
        engine: record of its engine.
        predict: predicts cases; called in the worker thread only.
        settings: limits and access.
        version: version of this package.
    """

    def __init__(
        self, bundle: Bundle, engine: EngineRecord, predict: PredictCases, *, settings: ServiceSettings, version: str
    ) -> None:
        self.bundle, self.engine, self.settings, self.version = bundle, engine, settings, version
        self.metrics = ServiceMetrics(bundle, engine, version=version, waiting=lambda: self._queue.waiting)
        self._queue = CaseQueue(
            predict,
            max_batch=settings.max_batch,
            max_delay_s=settings.max_delay_s,
            on_batch=self.metrics.count_batch,
        )
        self._admitted = 0
        self._seconds_per_case = 1.0
        self.draining = False
        """Whether the service takes no new connection any more."""

    @property
    def is_ready(self) -> bool:
        """Whether cases are predicted and the service is not about to end."""
        return self.is_live and not self.draining

    @property
    def is_live(self) -> bool:
        """Whether the worker runs."""
        return self._queue.is_alive

    def close(self) -> None:
        """Predict the cases that wait, and end the worker."""
        self._queue.close()

    def admit(self) -> None:
        """Reserve a place in the queue, before the body of a request is read; `leave` returns it.

        Raises:
            RequestError: `queue-full`.
        """
        if self._admitted >= self.settings.queue + self.settings.max_batch:
            seconds = min(MAX_RETRY_S, max(1, math.ceil(self._seconds_per_case * self._admitted)))
            raise RequestError(
                "queue-full",
                "the queue of cases is full",
                fix=f"send the request again after {seconds} s",
                headers={"retry-after": str(seconds)},
            )
        self._admitted += 1

    def leave(self) -> None:
        """Return the place that `admit` reserved."""
        self._admitted -= 1

    async def predict(self, case: Case, *, deadline: float, gone: Awaitable[None]) -> CaseResult:
        """Predict a case.

        Args:
            case: the case.
            deadline: time of `monotonic` after which nobody waits.
            gone: ends when the client has closed the connection.

        Raises:
            RequestError: `deadline`, `client-gone`, `failed`.
        """
        start = monotonic()
        result: asyncio.Future[Any] = asyncio.wrap_future(self._queue.submit(case, deadline=deadline))
        watcher: asyncio.Future[Any] = asyncio.ensure_future(gone)
        try:
            await asyncio.wait(
                {result, watcher}, timeout=max(0.0, deadline - start), return_when=asyncio.FIRST_COMPLETED
            )
            if not result.done():
                if watcher.done():
                    raise RequestError("client-gone", "the client closed the connection", fix="wait for the response")
                raise _deadline_error(self.settings.timeout_s)
            error = result.exception()
            if isinstance(error, DeadlineError):
                raise _deadline_error(self.settings.timeout_s)
            if error is not None:
                raise RequestError(
                    "failed", "the prediction of this case failed", fix="see the log of the service by the request id"
                ) from error
        finally:
            watcher.cancel()
            result.cancel()  # a case whose prediction has not begun is dropped by the worker
        self._seconds_per_case += 0.1 * ((monotonic() - start) / max(1, self._admitted) - self._seconds_per_case)
        predicted: CaseResult = result.result()
        self.metrics.count_result(predicted)
        return predicted

    def document(self, result: CaseResult) -> str:
        """The document of `tmi predict --json` for one case."""
        return result_document(result, bundle=self.bundle, engine=self.engine, version=self.version)

    def metadata(self) -> dict[str, Any]:
        """Metadata of the model in the protocol, with the bundle's as parameters."""
        manifest = self.bundle.manifest
        return {
            "name": MODEL,
            "versions": [MODEL_VERSION],
            "platform": "tmi_bundle",
            "inputs": input_metadata(),
            "outputs": output_metadata(manifest),
            "parameters": {
                "bundle": self.bundle.digest,
                "engine": self.engine.name,
                "precision": self.engine.precision,
                "classes": list(manifest.classes),
                "positive": manifest.classes[manifest.positive],
                "threshold": manifest.threshold,
                "folds": [fold.fold for fold in manifest.folds],
            },
        }

    def require_outputs(self, request: InferRequest) -> None:
        """Raise before a prediction if an unknown output is wanted.

        Raises:
            RequestError: `bad-request`.
        """
        known = {entry["name"]: entry for entry in output_metadata(self.bundle.manifest)}
        require_known(request.outputs or {}, known, kind="output")

    def tensors(self, result: Prediction) -> list[Tensor]:
        """Outputs of a prediction, in the order of the metadata."""
        return output_tensors(result, document=self.document(result), manifest=self.bundle.manifest)


def _deadline_error(seconds: float) -> RequestError:
    return RequestError(
        "deadline", f"no result within {seconds:g} s", fix="send the request again, or start with a longer --timeout"
    )
