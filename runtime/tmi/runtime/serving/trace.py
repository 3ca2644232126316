"""Trace of predictions: which thread worked on which stage of which cases, from when to when.

Worker threads prepare cases while the engine's thread computes. Both record spans here and know nothing of each other.
What a user waited for is computed from the intervals afterwards (`waterfall`): a second of preparation during which the
engine's thread waited counts as waited for, any other one ran behind other work. If several workers prepare while it
waits, each has its equal share of the second, so that every second of the wait is counted once. A wait during which no
worker prepares is the hand-over between threads; it counts as `other`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from threading import Lock
from time import perf_counter

from tmi.toolkit.compute.stage_timer import Span

TURN, WAITING, PREPARATION = "turn", "waiting", "preparation"
"""Spans that are no stage: all the time of the engine's thread for some cases; the part of it that it waits for their
preparation; the whole preparation of one case in a worker thread."""
OTHER = "other"
"""Stage of the work between the encoders, and of the hand-over between threads."""
TOLERANCE = 0.05
"""Fraction of the total that may be unaccounted for by stages."""
FLOOR_SECONDS = 0.002
"""Absolute tolerance, for predictions that take milliseconds: a thread switch alone costs a fraction of one."""


@dataclass(frozen=True, slots=True)
class CaseSpan:
    """A span of work for one case, or for several that share it."""

    span: Span
    """Stage, start and end."""
    cases: tuple[str, ...]
    """Ids of the cases that share it."""
    worker: bool
    """Whether a worker thread recorded it, beside the engine's thread."""


class Trace:
    """Spans of one stream of cases; several threads may record at once."""

    def __init__(self) -> None:
        self._spans: list[CaseSpan] = []
        self._lock = Lock()

    def add(self, spans: Sequence[Span], cases: Sequence[str], *, worker: bool = False) -> None:
        """Record spans that are shared by some cases."""
        recorded = [CaseSpan(span, tuple(cases), worker) for span in spans]
        with self._lock:
            self._spans += recorded

    @contextmanager
    def span(self, stage: str, cases: Sequence[str], *, worker: bool = False) -> Iterator[None]:
        """Record a `with` block, also one that raises; a list of cases may be filled within the block."""
        start = perf_counter()
        try:
            yield
        finally:
            self.add([Span(stage, start, perf_counter())], cases, worker=worker)

    def take(self, cases: Sequence[str], *, rejected: Sequence[str] = ()) -> tuple[CaseSpan, ...]:
        """Remove and return the spans of some cases, in the order of their ends.

        Args:
            cases: ids of the cases.
            rejected: those of them that get no prediction: their share of the engine's thread is that of the others.
        """
        wanted, dropped = set(cases), set(rejected)
        with self._lock:
            taken = [span for span in self._spans if not wanted.isdisjoint(span.cases)]
            self._spans = [span for span in self._spans if wanted.isdisjoint(span.cases)]
        return tuple(s if s.worker else replace(s, cases=tuple(c for c in s.cases if c not in dropped)) for s in taken)


@dataclass(frozen=True, kw_only=True)
class Waterfall:
    """Seconds of one case, in which each second of the engine's thread is counted once."""

    seconds: Mapping[str, float]
    """Seconds that the prediction waited for, by stage, and the `total`, which is measured separately by `TURN` spans.
    What cases share is divided evenly."""
    overlapped: Mapping[str, float]
    """Seconds of the stages of its preparation that ran behind other work; not part of `seconds`."""


def waterfall(spans: Sequence[CaseSpan], case_id: str) -> Waterfall:
    """Compute the waterfall of one case.

    Args:
        spans: spans of the case and of all cases that it shares a span with.
        case_id: id of the case.
    """
    waits = [s for s in spans if s.span.stage == WAITING and case_id in s.cases]
    own = [s.span for s in spans if s.worker and s.cases == (case_id,) and s.span.stage != PREPARATION]
    preparations = [s for s in spans if s.span.stage == PREPARATION]
    seconds = dict.fromkeys((span.stage for span in own), 0.0)
    hidden = dict(seconds)
    for span in own:
        hidden[span.stage] += span.seconds
    total = handover = 0.0
    for wait in waits:
        together = [p for p in preparations if p.span.start < wait.span.end and wait.span.start < p.span.end]
        edges = {wait.span.start, wait.span.end}
        edges.update(edge for p in together for edge in (p.span.start, p.span.end))
        for start, end in pairwise(sorted(e for e in edges if wait.span.start <= e <= wait.span.end)):
            active = [p for p in together if p.span.start <= start and end <= p.span.end]
            if not active:  # a thread starts or wakes up, which takes milliseconds on a busy machine
                total += (end - start) / len(wait.cases)
                handover += (end - start) / len(wait.cases)
            if not any(case_id in p.cases for p in active):
                continue
            total += (end - start) / len(active)
            for span in own:
                both = min(end, span.end) - max(start, span.start)
                if both > 0:
                    seconds[span.stage] += both / len(active)
                    hidden[span.stage] -= both / len(active)
    for shared in spans:
        if shared.worker or case_id not in shared.cases:
            continue
        stage, part = shared.span.stage, shared.span.seconds / len(shared.cases)
        if stage in (TURN, WAITING):
            total += part if stage == TURN else -part
        else:
            seconds[stage] = seconds.get(stage, 0.0) + part
    if handover:
        seconds[OTHER] = seconds.get(OTHER, 0.0) + handover
    return Waterfall(
        seconds={**seconds, "total": total}, overlapped={stage: max(0.0, value) for stage, value in hidden.items()}
    )


def sum_stages(*parts: Mapping[str, float]) -> dict[str, float]:
    """Sum seconds by stage over several measurements; stages keep the order of their first appearance."""
    seconds: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            seconds[name] = seconds.get(name, 0.0) + value
    return seconds


def unaccounted_seconds(seconds: Mapping[str, float]) -> float:
    """Seconds of `total` that belong to no stage; negative if the stages add up to more than `total`."""
    return seconds["total"] - sum(value for name, value in seconds.items() if name != "total")


def stages_match_total(seconds: Mapping[str, float]) -> bool:
    """Whether the stages add up to the separately measured `total` within `TOLERANCE` or `FLOOR_SECONDS`."""
    return abs(unaccounted_seconds(seconds)) <= max(TOLERANCE * seconds["total"], FLOOR_SECONDS)
