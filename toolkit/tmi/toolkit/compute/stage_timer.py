"""Stage timer: assigns every moment of wall-clock time to exactly one stage, as spans with a start and an end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter


@dataclass(frozen=True, slots=True)
class Span:
    """A stage that one thread worked on, from `start` to `end`."""

    stage: str
    """Name of the stage."""
    start: float
    """Seconds of `time.perf_counter`."""
    end: float
    """Seconds of `time.perf_counter`."""

    @property
    def seconds(self) -> float:
        """Length of the span."""
        return self.end - self.start


class StageTimer:
    """Starts on construction. Its spans do not overlap, and cover the time until the last `lap`."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        """Spans in the order of their ends; those of the current lap are only the recorded parts."""
        self._start = self._covered = perf_counter()
        self._parts: list[Span] = []

    def lap(self, stage: str) -> None:
        """Give the time since the last lap to a stage, without the parts given to `record` meanwhile."""
        now = perf_counter()
        for part in self._parts:
            self._add(stage, self._start, part.start)
            self._add(part.stage, part.start, part.end)
            self._start = part.end
        self._add(stage, self._start, now)
        self._start = self._covered = now
        self._parts.clear()

    def record(self, stage: str, seconds: float) -> None:
        """Give the last `seconds` of the current lap to a stage; they are measured on the thread that calls `lap`.

        A sum of short periods, such as the reads of one slab, becomes one span that ends now.
        """
        now = perf_counter()
        start = max(now - seconds, self._covered)
        if now > start:
            self._parts.append(Span(stage, start, now))
        self._covered = now

    def _add(self, stage: str, start: float, end: float) -> None:
        if end > start:
            self.spans.append(Span(stage, start, end))


def sum_spans(spans: Sequence[Span], stages: Iterable[str] = ()) -> dict[str, float]:
    """Seconds by stage; `stages` come first, in their order, and are 0 without a span."""
    seconds = dict.fromkeys(stages, 0.0)
    for span in spans:
        seconds[span.stage] = seconds.get(span.stage, 0.0) + span.seconds
    return seconds
