"""Prefetching of cases: order, memory bound and threads of the preparation; it knows nothing of bundles and engines.

Worker threads prepare the next cases while the engine computes. The number of prefetched cases is bounded, so memory
does not grow with the cohort.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from types import TracebackType
from typing import Generic, Self, TypeVar

from tmi.toolkit.cases.arrays import CaseArrays as CaseArrays
from tmi.toolkit.cases.case import Case
from tmi.toolkit.cases.loaded import LoadedCase
from tmi.toolkit.imaging.nifti import read_ahead

Prepared = TypeVar("Prepared")
"""Outcome of the preparation of a case."""


class PendingCase(Generic[Prepared]):
    """A case in preparation: its text is available before its other inputs."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.text: Future[str | None] = Future()
        """The clinical text; None if the case was rejected before its text was rendered."""
        self.inputs: Future[Prepared]
        """Outcome of the preparation."""


class Prefetcher(Generic[Prepared]):
    """Iterator over cases, in order and in groups, that prepares the next cases in worker threads.

    Use it as a context manager. Prefetching starts only when the caller requests a group or calls `computing`. There
    are two modes:

    - Overlapped (`in_rounds=False`), for an engine on a GPU or on some of the cores. A group is one case. `computing`
      starts the preparation of the next cases, which runs while the engine computes.
    - Rounds (`in_rounds=True`), for an engine on the same cores as the workers. When no prepared case is left, a whole
      round is prepared in parallel and returned as one group; the engine is idle meanwhile. Decompressing one gzip
      stream occupies one core, and a layer that runs on all cores waits for its slowest thread, so overlapping would
      slow down every layer. A round decompresses one stream on each core instead (`docs/performance-history.md`).

    Args:
        prepare: prepares one case; it is given the case, and a function to call with the case's text.
        cases: the cases, in order.
        max_ahead: maximum number of cases prepared or in preparation but not yet returned; the size of a round.
        in_rounds: whether to work in rounds instead of overlapping with the engine.
        readers: number of worker threads.
        fetch: reads a case's files into the page cache; called for the cases of the next round.
    """

    def __init__(
        self,
        prepare: Callable[[Case, Callable[[str], None]], Prepared],
        cases: Sequence[Case],
        *,
        max_ahead: int,
        in_rounds: bool = False,
        readers: int = 1,
        fetch: Callable[[Case], None] = lambda case: None,
    ) -> None:
        self._prepare_case, self._cases, self._max_ahead, self._fetch = prepare, deque(cases), max_ahead, fetch
        self._in_rounds = in_rounds
        self._ahead: deque[PendingCase[Prepared]] = deque()
        self._workers = ThreadPoolExecutor(max_workers=readers, thread_name_prefix="prepare")
        self._fetched = 0

    def computing(self) -> None:
        """Start prefetching; call it when the engine starts to compute on the last group. Returns at once.

        In overlapped mode the workers start to prepare the next cases. In rounds they only read the files of the next
        round from the disk, which needs no CPU time.
        """
        if not self._in_rounds:
            self._submit()
            return
        # `_fetched` counts cases of the next round, so that repeated calls read each file once.
        for case in islice(self._cases, self._fetched, self._max_ahead):
            self._workers.submit(self._fetch, case)
            self._fetched += 1

    def _submit(self) -> None:
        # Memory bound: at most `max_ahead` cases exist that the consumer has not taken.
        while self._cases and len(self._ahead) < self._max_ahead:
            # The worker may start before `inputs` is assigned; it uses only `case` and `text`.
            pending: PendingCase[Prepared] = PendingCase(self._cases.popleft())
            pending.inputs = self._workers.submit(self._prepare, pending)
            self._ahead.append(pending)
        self._fetched = 0

    def _prepare(self, pending: PendingCase[Prepared]) -> Prepared:
        try:
            return self._prepare_case(pending.case, pending.text.set_result)
        finally:
            # Rejected or failed before its text was rendered: release a consumer that waits for the text.
            if not pending.text.done():
                pending.text.set_result(None)

    def __iter__(self) -> Iterator[list[PendingCase[Prepared]]]:
        return self

    def __next__(self) -> list[PendingCase[Prepared]]:
        if not self._ahead:
            self._submit()
        if not self._ahead:
            raise StopIteration
        # A round is one group: the engine must not start while its workers still use the cores.
        return [self._ahead.popleft() for _ in range(len(self._ahead) if self._in_rounds else 1)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Cancels queued cases and waits for running ones, so that a stream that is closed early leaves no thread.
        self._workers.shutdown(cancel_futures=True)


def fetch_images(case: Case) -> None:
    """Ask the operating system to read the images of a case into its page cache; missing files are ignored."""
    if not isinstance(case, CaseArrays | LoadedCase):
        for path in (case.ct, case.mask):
            with suppress(OSError):  # the preparation reports the error of an unreadable file
                read_ahead(path)
