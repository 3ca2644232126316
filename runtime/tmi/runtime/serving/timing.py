"""Seconds by named stage, and how a waterfall is put together from what an answer waited for.

While one thread prepares a case, the other computes. A second that both spend is one second of the user's wait. So a
stage counts with the part that the answer waited for (`waited`), and what was done in the shadow of other work is told
beside it (`hidden`), never in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter

TOLERANCE = 0.05
"""Part of the total that no stage needs to claim."""
FLOOR_SECONDS = 0.002
"""As `TOLERANCE`, for answers of milliseconds: switching threads alone costs a part of one."""


class Stopwatch:
    """Adds up wall-clock seconds under the names of stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = perf_counter()

    @property
    def wall(self) -> float:
        """Seconds since it was made."""
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
        """Count some of one stage's seconds, at most all of them, under another name."""
        moved = min(max(seconds, 0.0), self.seconds.get(source, 0.0))
        self.seconds[source] = self.seconds.get(source, 0.0) - moved
        self.seconds[target] = self.seconds.get(target, 0.0) + moved


def sum_stages(*parts: Mapping[str, float]) -> dict[str, float]:
    """Seconds by stage over several measurements, in the order in which the stages appear."""
    seconds: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            seconds[name] = seconds.get(name, 0.0) + value
    return seconds


def split_overlap(
    prepared: Mapping[str, float], *, wall: float, waited: float
) -> tuple[dict[str, float], dict[str, float]]:
    """A preparation's stages, as what was waited for and what was hidden by other work.

    Which moments of the preparation were waited for is not recorded; each stage takes its share in proportion.

    Args:
        prepared: seconds by stage, measured in the thread that prepared.
        wall: seconds that the preparation took there.
        waited: seconds of it that nothing else could be done.
    """
    share = min(1.0, waited / wall) if wall > 0 else 0.0
    return {n: s * share for n, s in prepared.items()}, {n: s * (1 - share) for n, s in prepared.items()}


def unaccounted_seconds(seconds: Mapping[str, float]) -> float:
    """Seconds of `total` that no stage claims; negative where stages claim more than there was."""
    return seconds["total"] - sum(value for name, value in seconds.items() if name != "total")


def stages_match_total(seconds: Mapping[str, float]) -> bool:
    """Whether the stages add up to `total`, measured by itself, within `TOLERANCE` or `FLOOR_SECONDS`."""
    return abs(unaccounted_seconds(seconds)) <= max(TOLERANCE * seconds["total"], FLOOR_SECONDS)
