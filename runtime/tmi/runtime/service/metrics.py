"""Metrics of the service for Prometheus, in a registry of its own. No label holds content of a request."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.selection import EngineRecord
from tmi.runtime.serving.results import CaseResult, Prediction

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper limits of the buckets of durations."""
BATCHES = (1, 2, 4, 8, 16, 32)
"""Upper limits of the buckets of batch sizes."""
CONTENT_TYPE = CONTENT_TYPE_LATEST


class ServiceMetrics:
    """Counters and histograms of one service.

    Args:
        version: version of this package.
        waiting: returns the number of cases that wait.
    """

    def __init__(self, *, version: str, waiting: Callable[[], int]) -> None:
        self._version = version
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "tmi_requests", "Requests by route, status and code.", ["route", "status", "code"], registry=registry
        )
        self._request_seconds = Histogram(
            "tmi_request_seconds", "Seconds of a request.", ["route"], buckets=SECONDS, registry=registry
        )
        self._stage_seconds = Histogram(
            "tmi_stage_seconds", "Seconds of a prediction, by stage.", ["stage"], buckets=SECONDS, registry=registry
        )
        self._batches = Histogram(
            "tmi_batch_cases", "Cases taken from the queue together.", buckets=BATCHES, registry=registry
        )
        self._warnings = Counter("tmi_warnings", "Warnings of predictions, by code.", ["code"], registry=registry)
        queue = Gauge("tmi_queue_cases", "Cases that wait for their prediction.", registry=registry)
        queue.set_function(waiting)
        self._loads = Counter(
            "tmi_bundle_loads", "Loads of a bundle while the service runs, by outcome.", ["outcome"], registry=registry
        )
        self._info = Gauge(
            "tmi_info",
            "Always 1.",
            ["version", "bundle", "preset", "engine", "precision", "threads"],
            registry=registry,
        )
        self._model: tuple[str, ...] | None = None

    def set_model(self, bundle: Bundle, engine: EngineRecord) -> None:
        """State the bundle that predicts from now on, and its engine."""
        facts = (bundle.digest, bundle.manifest.preset, engine.name, engine.precision, str(engine.threads))
        before, self._model = self._model, (self._version, *facts)
        if before is not None:
            self._info.remove(*before)
        self._info.labels(*self._model).set(1)

    def count_load(self, outcome: str) -> None:
        """Count a load: `swapped`, `unchanged`, `rejected` by a check, or `failed`."""
        self._loads.labels(outcome).inc()

    def count_request(self, route: str, status: int | str, code: str, seconds: float) -> None:
        """Count a finished request."""
        self._requests.labels(route, str(status), code).inc()
        self._request_seconds.labels(route).observe(seconds)

    def count_batch(self, cases: int) -> None:
        """Count a batch that was taken from the queue."""
        self._batches.observe(cases)

    def count_result(self, result: CaseResult) -> None:
        """Count the stages and warnings of a prediction."""
        if isinstance(result, Prediction):
            for stage, seconds in result.seconds.items():
                self._stage_seconds.labels(stage).observe(seconds)
            for code in {issue.code for issue in result.warnings}:
                self._warnings.labels(code).inc()

    def text(self) -> bytes:
        """The exposition format, whose media type is `CONTENT_TYPE`."""
        return generate_latest(self._registry)
