"""Queue of cases and its one worker thread, which predicts what waits in batches.

The worker takes the cases that wait, at most `max_batch`, after waiting at most `max_delay_s` for more. It drops those
whose deadline has passed; a cancelled case leaves the queue at once. If the prediction of a batch raises, each of its
cases without a result is predicted alone, so that one case cannot fail its neighbours.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import monotonic
from typing import Generic, TypeVar

from tmi.toolkit.cases.case import Case

R = TypeVar("R")
"""Result of a case."""


class DeadlineError(Exception):
    """The deadline of a case passed before its prediction began."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseJob(Generic[R]):
    """A case that waits for its prediction."""

    case: Case
    """The case."""
    deadline: float
    """Time of `monotonic` after which nobody waits for the result."""
    future: Future[R] = field(default_factory=Future)
    """The result, or the error; cancel it if nobody waits any more."""


class CaseQueue(Generic[R]):
    """Queue with one worker thread.

    Args:
        predict: yields the result of each case, in order; called in the worker thread only.
        max_batch: largest number of cases of one call.
        max_delay_s: seconds that the first case of a batch waits for more.
        on_batch: called with the number of cases of each batch.
    """

    def __init__(
        self,
        predict: Callable[[Sequence[Case]], Iterator[R]],
        *,
        max_batch: int = 1,
        max_delay_s: float = 0.0,
        on_batch: Callable[[int], None] = lambda cases: None,
    ) -> None:
        self._predict_cases, self._max_batch, self._max_delay_s = predict, max_batch, max_delay_s
        self._on_batch = on_batch
        self._jobs: deque[CaseJob[R]] = deque()
        self._calls: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._worker = threading.Thread(target=self._run, name="predict", daemon=True)
        self._worker.start()

    @property
    def is_alive(self) -> bool:
        """Whether the worker runs."""
        return self._worker.is_alive()

    @property
    def waiting(self) -> int:
        """Number of cases whose prediction has not begun."""
        return len(self._jobs)

    def submit(self, case: Case, *, deadline: float) -> Future[R]:
        """Append a case.

        Args:
            case: the case.
            deadline: time of `monotonic` after which its prediction does not begin any more.

        Returns:
            Its result; or `DeadlineError`, or what the prediction raised.

        Raises:
            RuntimeError: the queue is closed.
        """
        job: CaseJob[R] = CaseJob(case=case, deadline=deadline)
        job.future.add_done_callback(self._drop_cancelled)
        with self._changed:
            if self._closing:
                raise RuntimeError("the queue is closed")
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def between_batches(self, call: Callable[[], None]) -> Future[None]:
        """Call a function in the worker thread before the next batch.

        Raises:
            RuntimeError: the queue is closed.
        """
        done: Future[None] = Future()
        with self._changed:
            if self._closing:
                raise RuntimeError("the queue is closed")
            self._calls.append((call, done))
            self._changed.notify()
        return done

    def close(self) -> None:
        """Predict what waits, then end the worker."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._worker.join()

    def _drop_cancelled(self, future: Future[R]) -> None:
        """Free the case of a cancelled future: its place is given to another case at once."""
        if future.cancelled():
            with self._changed:
                self._jobs = deque(job for job in self._jobs if job.future is not future)

    def _run(self) -> None:
        while self._turn():  # a call of its own for each batch, so that no name keeps the cases of the last one alive
            pass

    def _turn(self) -> bool:
        """Predict one batch; return False if the queue is closed and empty."""
        group = self._next_group()
        while self._calls:
            _run_call(*self._calls.popleft())
        if group is None:
            return False
        running = [job for job in group if _begin(job)]
        if running:
            self._on_batch(len(running))
            self._predict(running)
        return True

    def _next_group(self) -> list[CaseJob[R]] | None:
        """Cases of the next batch, none if a call comes first; None: the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._calls or self._closing)
            if not self._jobs:
                return [] if self._calls else None
            self._changed.wait_for(
                lambda: len(self._jobs) >= self._max_batch or self._calls or self._closing, self._max_delay_s
            )
            group: dict[str, CaseJob[R]] = {}
            left: list[CaseJob[R]] = []
            while self._jobs and len(group) < self._max_batch:
                job = self._jobs.popleft()
                # Case ids distinguish results: a second case of the same id waits for the next batch.
                if group.setdefault(job.case.case_id, job) is not job:
                    left.append(job)
            self._jobs.extendleft(reversed(left))
            return list(group.values())

    def _predict(self, jobs: Sequence[CaseJob[R]]) -> None:
        waiting = deque(jobs)
        failure: Exception = RuntimeError("the prediction ended before the result of this case")
        try:
            for result in self._predict_cases([job.case for job in jobs]):
                waiting.popleft().future.set_result(result)
        except Exception as error:  # noqa: BLE001 - whatever an engine raises, the worker must serve the next case
            failure = error
        if len(jobs) == 1 and waiting:
            waiting.popleft().future.set_exception(failure)
        for job in waiting:
            self._predict([job])


def _run_call(call: Callable[[], None], done: Future[None]) -> None:
    try:
        call()
    except Exception as error:  # noqa: BLE001 - the caller gets it; the worker must serve the next case
        done.set_exception(error)
    else:
        done.set_result(None)


def _begin(job: CaseJob[R]) -> bool:
    """Whether somebody still waits for a job."""
    if not job.future.set_running_or_notify_cancel():
        return False
    if monotonic() > job.deadline:
        job.future.set_exception(DeadlineError())
        return False
    return True
