"""What a benchmark's figures must keep to: ratios whose break fails `make bench-ci`, and the goals of the full size.

Only ratios inside one run are judged, never seconds: seconds are the machine's. The margins of `RATIOS` are generous,
so that a busy machine does not fail an honest change; `GOALS` are what the project wants to reach at full size on two
cores, and are told, not enforced.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A bound on one figure of one benchmark."""

    test: str
    """Name of the test, with its parameters."""
    metric: str
    """Name of the figure that it records."""
    at_most: float | None = None
    """Largest value that holds."""
    at_least: float | None = None
    """Smallest value that holds."""
    description: str
    """What holds then, in words."""

    def is_met_by(self, value: float) -> bool:
        """Whether a value keeps to the bound; one that is not a number does not."""
        low = float("-inf") if self.at_least is None else self.at_least
        high = float("inf") if self.at_most is None else self.at_most
        return low <= value <= high

    @property
    def bound(self) -> str:
        """The bound as it is printed."""
        return f"at least {self.at_least:g}" if self.at_least is not None else f"at most {self.at_most:g}"


@dataclass(frozen=True, kw_only=True)
class LimitResult:
    """A limit and what was measured."""

    limit: Limit
    value: float | None
    """None: the benchmark did not run, failed, or did not record the figure."""

    @property
    def is_met(self) -> bool:
        """A figure that is not there has not held."""
        return self.value is not None and self.limit.is_met_by(self.value)


RATIOS: Sequence[Limit] = (
    Limit(
        test="test_end_to_end_against_monai",
        metric="tmi predict / MONAI pipeline",
        at_most=0.9,
        description="a prediction is quicker than the MONAI pipeline on the eager network",
    ),
    Limit(
        test="test_forward[ct-0]",
        metric="default engine / eager",
        at_most=1.0,
        description="the default engine is no slower than eager",
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
        description="reading and preparing a CT is quicker than MONAI's transforms",
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
            description="all but the CT forward is at most a tenth of the whole",
        ),
        Limit(
            test="test_ct_forward_against_benchmark_app",
            metric="tmi / benchmark_app",
            at_most=1.05,
            description="CT forward within 5% of OpenVINO's benchmark_app",
        ),
    ),
    "3": (
        Limit(
            test="test_preparing_a_full_size_ct",
            metric="tmi / MONAI",
            at_most=1 / 3,
            description="reading and preparing at least 3 times faster than MONAI's transforms",
        ),
        Limit(
            test="test_preparing_a_full_size_ct",
            metric="tmi / SimpleITK + torch",
            at_most=1.0,
            description="reading and preparing no slower than SimpleITK's read and one trilinear pass",
        ),
    ),
    "4": (
        Limit(
            test="test_cold_start",
            metric="new process - warm",
            at_most=3.0,
            description="a new process answers at most 3 s later than a warm one",
        ),
    ),
    "5": (
        Limit(
            test="test_cohort_throughput",
            metric="throughput x CT forward",
            at_least=0.9,
            description="a cohort of 8 runs at 0.9 of 1 / (CT forward) at least",
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
            description="five folds take one fold's activations, all weights and 1.5 GB at most",
        ),
    ),
}
"""Point of what the runtime must reach -> its bounds."""


def read_metrics(document: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Test name -> figure name -> figure, from pytest-benchmark's JSON."""
    return {b["name"]: b.get("extra_info", {}).get("figures", {}) for b in document["benchmarks"]}


def evaluate_limits(document: Mapping[str, Any], limits: Sequence[Limit]) -> Iterator[LimitResult]:
    """Every limit, with the value that the document has for it."""
    found = read_metrics(document)
    for limit in limits:
        figure = found.get(limit.test, {}).get(limit.metric)
        yield LimitResult(limit=limit, value=None if figure is None else float(figure["value"]))
