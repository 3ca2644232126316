"""The service without HTTP: settings, admission of cases, prediction through the queue, and the swap of its bundle."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

from tmi.runtime.bundle.reader import Bundle
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
from tmi.runtime.service.request_log import LogRecord
from tmi.runtime.service.served_model import OpenAgain, ServedModel, ServedResult
from tmi.runtime.serving.results import Prediction
from tmi.toolkit.cases.case import Case
from tmi.toolkit.errors import TmiError

EXTENSIONS = ("binary_tensor_data", "model_repository")
"""Extensions of the protocol that the service has."""
MAX_RETRY_S = 60
"""Largest value of `Retry-After`."""


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
        model: the opened bundle; `close` closes it.
        settings: limits and access.
        version: version of this package.
        open_again: opens the bundle anew for `load`; None: it cannot be swapped.
        log: receives a record of each load.
    """

    def __init__(
        self,
        model: ServedModel,
        *,
        settings: ServiceSettings,
        version: str,
        open_again: OpenAgain | None = None,
        log: LogRecord = lambda level, fields: None,
    ) -> None:
        self.settings, self.version = settings, version
        self._model, self._open_again, self._log = model, open_again, log
        self._load: asyncio.Task[bool] | None = None
        self.load_failure = ""
        """Why the last load was rejected; empty: it was not."""
        self.metrics = ServiceMetrics(version=version, waiting=lambda: self._queue.waiting)
        self.metrics.set_model(model.bundle, model.engine)
        self._queue: CaseQueue[ServedResult] = CaseQueue(
            self._predict_batch,
            max_batch=settings.max_batch,
            max_delay_s=settings.max_delay_s,
            on_batch=self.metrics.count_batch,
        )
        self._admitted = 0
        self._seconds_per_case = 1.0
        self.draining = False
        """Whether the service takes no new connection any more."""

    @property
    def bundle(self) -> Bundle:
        """The bundle that predicts now."""
        return self._model.bundle

    @property
    def is_ready(self) -> bool:
        """Whether cases are predicted and the service is not about to end."""
        return self.is_live and not self.draining

    @property
    def is_live(self) -> bool:
        """Whether the worker runs."""
        return self._queue.is_alive

    def close(self) -> None:
        """Predict the cases that wait, end the worker and close the model."""
        self._queue.close()
        self._model.close()

    def _predict_batch(self, cases: Sequence[Case]) -> Iterator[ServedResult]:
        model = self._model  # swapped between batches only
        return (ServedResult(result=result, model=model) for result in model.predict(cases))

    async def load(self) -> bool:
        """Open the bundle of the folder again, check it beside the running one, and swap them between two batches.

        It goes on if its caller is cancelled.

        Returns:
            Whether the bundle was swapped; False: the folder holds the running one, whose files were compared again.

        Raises:
            RequestError: `load-running`; `bundle-rejected`: a check failed, and the running bundle stays.
        """
        if self._load is not None:
            raise RequestError("load-running", "a bundle is being loaded", fix="send the request again later")
        self._load = asyncio.create_task(self._replace())
        self._load.add_done_callback(self._end_load)
        return await asyncio.shield(self._load)

    def _end_load(self, load: asyncio.Task[bool]) -> None:
        self._load = None
        failure = None if load.cancelled() else load.exception()
        if failure is None:
            return
        self.metrics.count_load("rejected" if isinstance(failure, RequestError) else "failed")
        why = failure.__cause__ if isinstance(failure, RequestError) else type(failure).__name__
        self._log("error", {"event": "load", "outcome": "rejected", "reason": str(why), "bundle": self.bundle.digest})

    async def _replace(self) -> bool:
        if self._open_again is None:
            raise RequestError("bundle-rejected", "this service does not swap its bundle", fix="start it again")
        try:
            model = await asyncio.to_thread(self._open_again, self._model)
        except TmiError as error:
            what = error.what.replace(str(self.bundle.folder), "of the service")
            self.load_failure = f"{error.code}: {what}"
            raise RequestError(
                "bundle-rejected",
                f"the bundle in the folder fails a check, and the running one stays: {self.load_failure}",
                fix=error.fix.replace(str(self.bundle.folder), "BUNDLE"),
            ) from error
        self.load_failure = ""
        if model is not None:
            await asyncio.wrap_future(self._queue.between_batches(lambda: self._swap(model)))
        outcome = "unchanged" if model is None else "swapped"
        self.metrics.count_load(outcome)
        self._log("info", {"event": "load", "outcome": outcome, "bundle": self.bundle.digest})
        return model is not None

    def _swap(self, model: ServedModel) -> None:
        """Exchange the model; called in the worker thread, so that nothing is predicted with the old one."""
        before, self._model = self._model, model
        self.metrics.set_model(model.bundle, model.engine)
        before.close()

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

    async def predict(self, case: Case, *, deadline: float, gone: Awaitable[None]) -> ServedResult:
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
        served: ServedResult = result.result()
        self.metrics.count_result(served.result)
        return served

    def document(self, served: ServedResult) -> str:
        """The document of `tmi predict --json` for one case."""
        model = served.model
        return result_document(served.result, bundle=model.bundle, engine=model.engine, version=self.version)

    def metadata(self) -> dict[str, Any]:
        """Metadata of the model in the protocol, with the bundle's as parameters."""
        model = self._model
        manifest = model.bundle.manifest
        return {
            "name": MODEL,
            "versions": [MODEL_VERSION],
            "platform": "tmi_bundle",
            "inputs": input_metadata(),
            "outputs": output_metadata(manifest),
            "parameters": {
                "bundle": model.bundle.digest,
                "engine": model.engine.name,
                "precision": model.engine.precision,
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

    def tensors(self, served: ServedResult) -> list[Tensor]:
        """Outputs of a prediction, in the order of the metadata."""
        assert isinstance(served.result, Prediction)
        return output_tensors(served.result, document=self.document(served), manifest=served.model.bundle.manifest)

    def repository_index(self, *, only_ready: bool) -> list[dict[str, str]]:
        """Entries of the repository in the protocol: the one model, with the reason why the last load was rejected."""
        state = "READY" if self.is_ready else "UNAVAILABLE"
        entry = {"name": MODEL, "version": MODEL_VERSION, "state": state, "reason": self.load_failure}
        return [] if only_ready and not self.is_ready else [entry]


def _deadline_error(seconds: float) -> RequestError:
    return RequestError(
        "deadline", f"no result within {seconds:g} s", fix="send the request again, or start with a longer --timeout"
    )
