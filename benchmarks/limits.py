"""Limits of benchmark metrics: ratios that `make bench-ci` enforces, and goals at full size.

Only ratios within one run are limited, because seconds depend on the machine. The margins of `RATIOS` are wide, so that
load on the machine does not fail a correct change. `GOALS` are the goals at full size on two cores; they are reported,
not enforced.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A bound on one metric of one benchmark."""

    test: str
    """Name of the test, with its parameters."""
    metric: str
    """Name of the metric that it records."""
    at_most: float | None = None
    """Upper bound, inclusive."""
    at_least: float | None = None
    """Lower bound, inclusive."""
    description: str
    """What the limit means, for the report."""

    def is_met_by(self, value: float) -> bool:
        """Whether a value is within the bound; NaN is not."""
        low = float("-inf") if self.at_least is None else self.at_least
        high = float("inf") if self.at_most is None else self.at_most
        return low <= value <= high

    @property
    def bound(self) -> str:
        """The bound as text."""
        return f"at least {self.at_least:g}" if self.at_least is not None else f"at most {self.at_most:g}"


@dataclass(frozen=True, kw_only=True)
class LimitResult:
    """A limit and the measured value."""

    limit: Limit
    value: float | None
    """None if the benchmark did not run, failed or did not record the metric."""

    @property
    def is_met(self) -> bool:
        """Whether the limit is met; a limit without a measured value is not."""
        return self.value is not None and self.limit.is_met_by(self.value)


RATIOS: Sequence[Limit] = (
    Limit(
        test="test_end_to_end_against_monai",
        metric="tmi predict / MONAI pipeline",
        at_most=0.9,
        description="a prediction is faster than the MONAI pipeline with the eager network",
    ),
    Limit(
        test="test_forward[ct-0]",
        metric="default engine / eager",
        at_most=1.0,
        description="the default engine is no slower than eager",
    ),
    Limit(
        test="test_auto_against_the_quickest[small]",
        metric="auto / quickest engine",
        at_most=1.15,
        description="auto takes an engine within 15% of the quickest, small size",
    ),
    Limit(
        test="test_auto_against_the_quickest[middle]",
        metric="auto / quickest engine",
        at_most=1.15,
        description="auto takes an engine within 15% of the quickest, where the CT encoder takes most of the time",
    ),
    Limit(
        test="test_stages_add_up",
        metric="|sum of stages / wall - 1|",
        at_most=0.05,
        description="the stages of a prediction add up to its wall time",
    ),
    Limit(
        test="test_imports_of_a_first_answer",
        metric="heavy packages imported",
        at_most=0,
        description="a prediction on ONNX graphs imports no torch",
    ),
    Limit(
        test="test_preparing_a_full_size_ct",
        metric="tmi / MONAI",
        at_most=0.8,
        description="reading and preprocessing a CT is faster than MONAI's transforms",
    ),
)
"""What `make bench-ci` fails on."""

GOALS: Mapping[str, Sequence[Limit]] = {
    "1": (
        Limit(
            test="test_end_to_end_against_monai",
            metric="tmi predict / MONAI pipeline",
            at_most=1 / 3,
            description="at least 3 times faster than the MONAI pipeline, end to end, warm",
        ),
    ),
    "2": (
        Limit(
            test="test_stages_add_up",
            metric="part that is not the CT forward",
            at_most=0.1,
            description="everything but the CT forward pass is at most a tenth of the time",
        ),
        Limit(
            test="test_ct_forward_against_benchmark_app",
            metric="tmi / benchmark_app",
            at_most=1.05,
            description="CT forward pass within 5% of OpenVINO's benchmark_app",
        ),
    ),
    "3": (
        Limit(
            test="test_preparing_a_full_size_ct",
            metric="tmi / MONAI",
            at_most=1 / 3,
            description="reading and preprocessing is at least 3 times faster than MONAI's transforms",
        ),
        Limit(
            test="test_preparing_a_full_size_ct",
            metric="tmi / SimpleITK + torch",
            at_most=1.0,
            description="reading and preprocessing is no slower than SimpleITK's read and one trilinear pass",
        ),
    ),
    "4": (
        Limit(
            test="test_cold_start",
            metric="new process - warm",
            at_most=3.0,
            description="a new process takes at most 3 s longer than a warm one",
        ),
    ),
    "5": (
        Limit(
            test="test_cohort_throughput",
            metric="throughput x CT forward",
            at_least=0.9,
            description="the throughput of a cohort of 8 is at least 0.9 of 1 / (CT forward pass)",
        ),
    ),
    "6": (
        Limit(
            test="test_five_folds_against_one",
            metric="runs of a text encoder a case",
            at_most=1,
            description="a shared text encoder runs once",
        ),
        Limit(
            test="test_memory_of_five_folds",
            metric="over one fold's activations and all weights",
            at_most=1.5e9 / 2**30,
            description="five folds take at most one fold's activations, all weights and 1.5 GB",
        ),
    ),
}
"""Number of a goal -> its limits."""


def read_metrics(document: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Test name -> metric name -> metric, from the JSON of pytest-benchmark."""
    return {b["name"]: b.get("extra_info", {}).get("figures", {}) for b in document["benchmarks"]}


def evaluate_limits(document: Mapping[str, Any], limits: Sequence[Limit]) -> Iterator[LimitResult]:
    """Each limit with its value in the document."""
    metrics = read_metrics(document)
    for limit in limits:
        metric = metrics.get(limit.test, {}).get(limit.metric)
        yield LimitResult(limit=limit, value=None if metric is None else float(metric["value"]))
