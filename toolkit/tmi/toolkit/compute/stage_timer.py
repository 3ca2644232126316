"""Stage timer: assigns every moment of wall-clock time to exactly one stage."""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter


class StageTimer:
    """Starts on construction. The seconds of all stages add up to the time until the last `lap`.

    Args:
        stages: names of the stages.
    """

    def __init__(self, stages: Iterable[str]) -> None:
        self.seconds = dict.fromkeys(stages, 0.0)
        """Stage -> seconds."""
        self._last = perf_counter()
        self._recorded = 0.0

    def lap(self, stage: str) -> None:
        """Add the time since the last lap, minus the time given to `record` meanwhile, to a stage."""
        now = perf_counter()
        self._add(stage, now - self._last - self._recorded)
        self._last, self._recorded = now, 0.0

    def record(self, stage: str, seconds: float) -> None:
        """Add a part of the current lap to a stage; it has to be measured on the thread that calls `lap`."""
        self._add(stage, seconds)
        self._recorded += seconds

    def _add(self, stage: str, seconds: float) -> None:
        self.seconds[stage] += seconds
