"""Trace: the waterfall is computed from intervals, and each second of the engine's thread is counted once."""

from __future__ import annotations

import threading
from itertools import pairwise

import pytest

from tmi.runtime.serving.trace import (
    PREPARATION,
    TURN,
    WAITING,
    Trace,
    stages_match_total,
    unaccounted_seconds,
    waterfall,
)
from tmi.toolkit.compute.stage_timer import Span, StageTimer, sum_spans


def trace_of(*records: tuple[str, float, float, str, bool]) -> Trace:
    """A trace of (stage, start, end, cases, worker)."""
    trace = Trace()
    for stage, start, end, cases, worker in records:
        trace.add([Span(stage, start, end)], cases.split(), worker=worker)
    return trace


def test_preparation_counts_where_the_engine_waits():
    """A stage counts with the part during which the engine's thread waited; the rest is overlapped."""
    trace = trace_of(
        (PREPARATION, 0.0, 4.0, "A", True),
        ("read", 0.0, 3.0, "A", True),
        ("resample", 3.0, 4.0, "A", True),
        (TURN, 1.5, 5.0, "A", False),
        ("text", 1.5, 2.0, "A", False),
        (WAITING, 2.0, 4.0, "A", False),
        ("ct", 4.0, 5.0, "A", False),
    )
    times = waterfall(trace.take(["A"]), "A")
    assert times.seconds == {"read": 1.0, "resample": 1.0, "text": 0.5, "ct": 1.0, "total": 3.5}
    assert times.overlapped == {"read": 2.0, "resample": 0.0}
    assert stages_match_total(times.seconds)


def test_cases_prepared_together_share_a_second_of_waiting():
    """While two workers prepare, each has half of the wait; what the cases share is divided evenly."""
    trace = trace_of(
        (PREPARATION, 0.0, 2.0, "A", True),
        ("read", 0.0, 2.0, "A", True),
        (PREPARATION, 0.0, 4.0, "B", True),
        ("read", 0.0, 4.0, "B", True),
        (TURN, 0.0, 6.0, "A B", False),
        (WAITING, 0.0, 4.0, "A B", False),
        ("text", 4.0, 6.0, "A B", False),
    )
    spans = trace.take(["A", "B"])
    first, second = waterfall(spans, "A"), waterfall(spans, "B")
    assert first.seconds == {"read": 1.0, "text": 1.0, "total": 2.0}
    assert second.seconds == {"read": 3.0, "text": 1.0, "total": 4.0}, "alone from 2 to 4"
    assert (first.overlapped, second.overlapped) == ({"read": 1.0}, {"read": 1.0})


def test_rejected_case_has_no_share_of_the_engine():
    """Waiting for a rejected case counts for no other case, and shared work is divided among the others."""
    trace = trace_of(
        (PREPARATION, 0.0, 9.0, "bad", True),
        (PREPARATION, 0.0, 1.0, "A", True),
        ("read", 0.0, 1.0, "A", True),
        (TURN, 0.0, 10.0, "A bad", False),
        (WAITING, 0.0, 9.0, "A bad", False),
        ("text", 9.0, 10.0, "A bad", False),
    )
    times = waterfall(trace.take(["A", "bad"], rejected=["bad"]), "A")
    assert times.seconds == {"read": 0.5, "text": 1.0, "total": 1.5}


def test_handover_between_threads_is_other_work():
    """A wait before a worker starts and after it ends counts in `other`, divided among the cases that wait."""
    trace = trace_of(
        (TURN, 0.0, 8.0, "A B", False),
        (WAITING, 0.0, 6.0, "A B", False),
        (PREPARATION, 1.0, 5.0, "A", True),
        ("read", 1.0, 5.0, "A", True),
        (PREPARATION, 1.0, 3.0, "B", True),
        ("read", 1.0, 3.0, "B", True),
        ("other", 6.0, 8.0, "A B", False),
    )
    spans = trace.take(["A", "B"])
    first, second = waterfall(spans, "A"), waterfall(spans, "B")
    assert first.seconds == {"read": 3.0, "other": 2.0, "total": 5.0}
    assert second.seconds == {"read": 1.0, "other": 2.0, "total": 3.0}
    assert first.seconds["total"] + second.seconds["total"] == 8.0


def test_gaps_stay_unaccounted():
    """Time of the engine's thread, and of a preparation, that no stage covers is in the total alone."""
    trace = trace_of(
        (PREPARATION, 0.0, 2.0, "A", True),
        ("read", 0.0, 1.0, "A", True),
        (TURN, 0.0, 5.0, "A", False),
        (WAITING, 0.0, 3.0, "A", False),
        ("ct", 3.0, 4.0, "A", False),
    )
    times = waterfall(trace.take(["A"]), "A")
    assert times.seconds == {"read": 1.0, "ct": 1.0, "other": 1.0, "total": 5.0}
    assert unaccounted_seconds(times.seconds) == 2.0, "1 of the preparation, 1 at the end of the turn"
    assert not stages_match_total(times.seconds)


def test_taken_spans_leave_the_trace():
    """`take` removes the spans of its cases and no other, so that a long stream keeps few."""
    trace = trace_of(("read", 0.0, 1.0, "A", True), ("read", 1.0, 2.0, "B", True))
    assert [s.cases for s in trace.take(["A"])] == [("A",)]
    assert trace.take(["A"]) == ()
    assert [s.span for s in trace.take(["B"])] == [Span("read", 1.0, 2.0)]


def test_threads_record_at_once():
    """No span is lost if threads record and take spans at the same time."""
    trace, taken = Trace(), []

    def record(name: str) -> None:
        for _ in range(300):
            with trace.span("read", [name], worker=True):
                pass
            taken.extend(trace.take([name]))

    threads = [threading.Thread(target=record, args=(f"C{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 4 * 300


def test_span_of_a_block_that_raises_is_recorded():
    """A stage that fails still took its time."""
    trace = Trace()
    with pytest.raises(KeyError), trace.span("read", ["A"]):
        raise KeyError
    assert [s.span.stage for s in trace.take(["A"])] == ["read"]


def test_stage_timer_covers_every_moment_once():
    """Spans of a timer neither overlap nor leave gaps, and a recorded part is taken from its lap."""
    timer = StageTimer()
    timer.lap("record")
    for _ in range(3):
        sum(range(20_000))
        timer.record("read", 1e-4)
        sum(range(20_000))
    timer.lap("inflate")
    timer.lap("check")
    spans = timer.spans
    assert all(one.end == other.start for one, other in pairwise(spans))
    assert [s.stage for s in spans] == ["record", *("inflate", "read") * 3, "inflate", "check"]
    seconds = sum_spans(spans, ("mask",))
    assert seconds["read"] == pytest.approx(3e-4)
    assert seconds["mask"] == 0.0
    assert sum(seconds.values()) == pytest.approx(spans[-1].end - spans[0].start)


def test_part_longer_than_its_lap_is_cut():
    """A recorded part never reaches back beyond the lap or an earlier part."""
    timer = StageTimer()
    timer.record("read", 100.0)
    timer.record("read", 100.0)
    timer.lap("inflate")
    assert sum_spans(timer.spans)["read"] < 1.0
