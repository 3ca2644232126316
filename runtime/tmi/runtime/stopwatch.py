"""Seconds by named stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter


class Stopwatch:
    """Adds up wall-clock seconds under the names of stages."""

    def __init__(self, seconds: Mapping[str, float] | None = None) -> None:
        """Go on from what was measured already."""
        self.seconds: dict[str, float] = dict(seconds or {})
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


def waterfall(
    stages: tuple[str, ...], own: Mapping[str, float], shared: Mapping[str, float], *, total: float
) -> dict[str, float]:
    """Seconds by stage, and `total`, which they add up to; what no stage claims is `other`, the last of them."""
    seconds = {stage: own.get(stage, 0.0) + shared.get(stage, 0.0) for stage in stages}
    seconds["other"] += max(0.0, total - sum(seconds.values()))
    return {**seconds, "total": sum(seconds.values())}
