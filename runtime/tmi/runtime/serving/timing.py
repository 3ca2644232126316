"""Stopwatch by named stage, and the split of a preparation into waited-for and overlapped seconds.

One thread prepares a case while another one computes. A second in which both work is one second of the user's wait, so
it must be counted once. A stage therefore counts only with the part that the prediction waited for (`waited`). The part
that ran behind other work (`overlapped`) is reported separately.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter

TOLERANCE = 0.05
"""Fraction of the total that may be unaccounted for by stages."""
FLOOR_SECONDS = 0.002
"""Absolute tolerance, for predictions that take milliseconds: a thread switch alone costs a fraction of one."""


class Stopwatch:
    """Accumulates wall-clock seconds by stage name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = perf_counter()

    @property
    def wall(self) -> float:
        """Seconds since construction."""
        return perf_counter() - self._start

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a `with` block."""
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start

    def move(self, source: str, target: str, seconds: float) -> None:
        """Move seconds from one stage to another, at most all that the source stage has."""
        moved = min(max(seconds, 0.0), self.seconds.get(source, 0.0))
        self.seconds[source] = self.seconds.get(source, 0.0) - moved
        self.seconds[target] = self.seconds.get(target, 0.0) + moved


def sum_stages(*parts: Mapping[str, float]) -> dict[str, float]:
    """Sum seconds by stage over several measurements; stages keep the order of their first appearance."""
    seconds: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            seconds[name] = seconds.get(name, 0.0) + value
    return seconds


def split_overlap(
    prepared: Mapping[str, float], *, wall: float, waited: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Split the stages of a preparation into the part that was waited for and the part that overlapped other work.

    The moments of waiting are not recorded, so each stage is split in proportion: `stage * min(1, waited / wall)`.

    Args:
        prepared: seconds by stage, measured in the worker thread.
        wall: seconds that the preparation took there.
        waited: seconds that the engine's thread waited for it.

    Returns:
        Seconds by stage that were waited for, and seconds by stage that overlapped other work.
    """
    # Waiting may exceed the preparation itself, because a case can queue for a worker.
    share = min(1.0, waited / wall) if wall > 0 else 0.0
    return {n: s * share for n, s in prepared.items()}, {n: s * (1 - share) for n, s in prepared.items()}


def unaccounted_seconds(seconds: Mapping[str, float]) -> float:
    """Seconds of `total` that belong to no stage; negative if the stages add up to more than `total`."""
    return seconds["total"] - sum(value for name, value in seconds.items() if name != "total")


def stages_match_total(seconds: Mapping[str, float]) -> bool:
    """Whether the stages add up to the separately measured `total` within `TOLERANCE` or `FLOOR_SECONDS`."""
    return abs(unaccounted_seconds(seconds)) <= max(TOLERANCE * seconds["total"], FLOOR_SECONDS)
