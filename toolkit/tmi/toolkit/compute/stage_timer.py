"""Wall-clock seconds by stage, where every moment belongs to exactly one stage."""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter


class StageTimer:
    """Runs from when it is made; the stages' seconds add up to the time until the last `lap`.

    Args:
        stages: their names.
    """

    def __init__(self, stages: Iterable[str]) -> None:
        self.seconds = dict.fromkeys(stages, 0.0)
        """Seconds by stage."""
        self._last = perf_counter()
        self._recorded = 0.0

    def lap(self, stage: str) -> None:
        """What passed since the last lap, less what others took of it, belongs to this stage."""
        now = perf_counter()
        self._add(stage, now - self._last - self._recorded)
        self._last, self._recorded = now, 0.0

    def record(self, stage: str, seconds: float) -> None:
        """So much of the lap that runs belongs to this stage; it was measured on the thread that laps."""
        self._add(stage, seconds)
        self._recorded += seconds

    def _add(self, stage: str, seconds: float) -> None:
        self.seconds[stage] += seconds
