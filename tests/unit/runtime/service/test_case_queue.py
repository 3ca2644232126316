"""Queue of cases: batches, order, cancellation, deadlines, failures and its end."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from tmi.runtime.service.case_queue import CaseQueue, DeadlineError
from tmi.toolkit.cases.case import Case


class Recorder:
    """Predicts a case as its id, and records its batches; waits until it may run."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.started, self.may_run = threading.Event(), threading.Event()

    def __call__(self, cases):
        self.batches.append([case.case_id for case in cases])
        self.started.set()
        assert self.may_run.wait(20)
        for case in cases:
            if case.case_id.startswith("bad"):
                raise RuntimeError(case.case_id)
            yield case.case_id


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def case(name: str) -> Case:
    return Case(folder=Path(name), case_id=name)


def later() -> float:
    return time.monotonic() + 60


def test_waiting_cases_are_predicted_in_batches(recorder):
    """Cases that wait are taken together in their order, at most `max_batch`; one of equal id waits for the next."""
    sizes: list[int] = []
    queue = CaseQueue(recorder, max_batch=3, on_batch=sizes.append)
    futures = [queue.submit(case("first"), deadline=later())]
    recorder.started.wait(20)
    names = ["a", "b", "a", "c", "d", "e"]
    futures += [queue.submit(case(name), deadline=later()) for name in names]
    recorder.may_run.set()
    assert [future.result(20) for future in futures] == ["first", *names]
    assert recorder.batches == [["first"], ["a", "b", "c"], ["a", "d", "e"]]
    assert sizes == [1, 3, 3]
    queue.close()


def test_delay_collects_cases(recorder):
    """The first case waits at most `max_delay_s` for more, and no longer than until the batch is full."""
    recorder.may_run.set()
    queue = CaseQueue(recorder, max_batch=2, max_delay_s=20)
    futures = [queue.submit(case(name), deadline=later()) for name in ("a", "b")]
    assert [future.result(10) for future in futures] == ["a", "b"]
    assert recorder.batches == [["a", "b"]]
    queue.close()


def test_failure_concerns_its_case_alone(recorder):
    """When a batch raises, each case without a result is predicted alone, and the worker goes on."""
    queue = CaseQueue(recorder, max_batch=8)
    queue.submit(case("first"), deadline=later())
    recorder.started.wait(20)
    futures = {name: queue.submit(case(name), deadline=later()) for name in ("a", "bad", "c", "bad2")}
    recorder.may_run.set()
    assert [futures[name].result(20) for name in ("a", "c")] == ["a", "c"]
    for name in ("bad", "bad2"):
        with pytest.raises(RuntimeError, match=f"^{name}$"):
            futures[name].result(20)
    assert recorder.batches[1:] == [["a", "bad", "c", "bad2"], ["bad"], ["c"], ["bad2"]]
    assert queue.is_alive
    queue.close()


def test_cancelled_and_late_cases_are_dropped(recorder):
    """A cancelled case and one whose deadline has passed are not predicted."""
    queue = CaseQueue(recorder)
    queue.submit(case("first"), deadline=later())
    recorder.started.wait(20)
    cancelled, late = (queue.submit(case(n), deadline=d) for n, d in (("cancelled", later()), ("late", 0.0)))
    last = queue.submit(case("last"), deadline=later())
    given = weakref.ref(waiting := case("held"))
    held = queue.submit(waiting, deadline=later())
    del waiting
    assert cancelled.cancel()
    assert held.cancel()
    assert queue.waiting == 2, "a cancelled case leaves the queue at once, with its files"
    gc.collect()
    assert given() is None
    recorder.may_run.set()
    assert last.result(20) == "last"
    with pytest.raises(CancelledError):
        cancelled.result(20)
    with pytest.raises(DeadlineError):
        late.result(20)
    assert recorder.batches == [["first"], ["last"]]
    queue.close()


def test_faults_after_and_before_the_last_result(recorder):
    """A prediction that raises after its last result, or ends early, keeps the worker; retries are no batches."""
    sizes: list[int] = []

    def predict(cases):
        if cases[0].case_id == "short":
            return
        yield from (case.case_id for case in cases)
        raise RuntimeError("the end of the prefetcher")

    queue = CaseQueue(predict, max_batch=2, max_delay_s=20, on_batch=sizes.append)
    futures = [queue.submit(case(name), deadline=later()) for name in ("a", "b", "short", "c")]
    assert [future.result(20) for future in (*futures[:2], futures[3])] == ["a", "b", "c"]
    with pytest.raises(RuntimeError, match="ended before the result"):
        futures[2].result(20)
    assert (queue.is_alive, sizes) == (True, [2, 2])
    queue.close()


def test_close_predicts_what_waits(recorder):
    """`close` returns when every accepted case has its result; then none is accepted."""
    queue = CaseQueue(recorder)
    futures = [queue.submit(case(str(n)), deadline=later()) for n in range(5)]
    recorder.may_run.set()
    queue.close()
    assert [future.result(0) for future in futures] == list("01234")
    assert not queue.is_alive
    with pytest.raises(RuntimeError, match="closed"):
        queue.submit(case("late"), deadline=later())


def test_predicted_case_is_freed(recorder):
    """An idle queue holds no case: its files would stay in memory."""
    recorder.may_run.set()
    queue, given = CaseQueue(recorder), case("a")
    alive = weakref.ref(given)
    future = queue.submit(given, deadline=later())
    del given
    assert future.result(20) == "a"
    end = time.monotonic() + 10
    while alive() is not None and time.monotonic() < end:
        gc.collect()
        time.sleep(0.01)
    assert alive() is None
    queue.close()
