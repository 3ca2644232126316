"""Loading of cases: a case folder becomes the inputs of the fold models, in threads that run ahead of the engine.

`CaseLoader` reads, checks and prepares one case. `Prefetcher` runs it for the next cases while the engine computes.
The number of prefetched cases is bounded, so memory does not grow with the cohort.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from types import TracebackType
from typing import Self

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from tmi.runtime.bundle.manifest import Manifest
from tmi.runtime.serving.input_warnings import case_notices
from tmi.runtime.serving.results import Notice, RejectedCase
from tmi.runtime.serving.timing import Stopwatch, sum_stages
from tmi.toolkit.cases.arrays import CaseArrays as CaseArrays
from tmi.toolkit.cases.case import Case, reading
from tmi.toolkit.clinical.schema import Schema
from tmi.toolkit.compute.buffer_pool import BufferPool
from tmi.toolkit.config.schema import N_RADIOMICS
from tmi.toolkit.errors import InputRejectedError, UnavailableError
from tmi.toolkit.imaging.nifti import read_ahead
from tmi.toolkit.preprocessing.cache import PreparedCache
from tmi.toolkit.preprocessing.pipeline import PreparedCase, prepare_case
from tmi.toolkit.radiomics.scaler import RadiomicsScaler


@dataclass(frozen=True, kw_only=True)
class CaseInputs:
    """The inputs of one case, ready for the engine."""

    case: PreparedCase
    """CT, text and unscaled radiomics."""
    radiomics_FR: Float32[NDArray[np.float32], "F R"]
    """Radiomics scaled by each fold's own scaler; no rows if the bundle does not use radiomics."""
    notices: tuple[Notice, ...]
    """Notices about the input, to be reported with the prediction."""
    seconds: dict[str, float]
    """Seconds by stage of the preparation, measured in the worker thread."""
    wall: float
    """Seconds that the preparation took in total, measured separately from the stages."""


class CaseLoader:
    """Reads, checks and prepares cases for one bundle.

    Args:
        manifest: of the bundle.
        schema: its clinical schema.
        scalers: scalers of its folds, in the order of the manifest; empty if the bundle does not use radiomics.
        cache: disk cache of prepared images; None disables it.
    """

    def __init__(
        self,
        manifest: Manifest,
        schema: Schema,
        scalers: Sequence[RadiomicsScaler],
        *,
        cache: PreparedCache | None = None,
    ) -> None:
        self._manifest = manifest
        self._config = manifest.parsed_config()
        self._schema = schema
        self._scalers = scalers
        self._cache = cache
        self.memory = BufferPool()
        """Pool from which the large arrays of all cases are allocated."""

    def read(self, case: Case, on_text_ready: Callable[[str], None]) -> CaseInputs | RejectedCase:
        """Prepare one case.

        Args:
            case: the case.
            on_text_ready: called with the clinical text before any image is read.

        Returns:
            The inputs of the case, or the reason why it is rejected. A bad case never raises.
        """
        start = perf_counter()
        try:
            with reading(case.case_id):
                prepared = prepare_case(
                    case,
                    self._config,
                    self._schema,
                    modalities=self._manifest.modalities,
                    cache=self._cache,
                    on_text_ready=on_text_ready,
                    empty=self.memory.empty,
                )
        except InputRejectedError as error:
            return RejectedCase(case_id=case.case_id, code=error.code, what=error.what, fix=error.fix)
        except UnavailableError as error:
            # A missing package (for example for radiomics extraction) concerns this case alone, so the batch continues.
            return RejectedCase(case_id=case.case_id, code="unavailable", what=error.what, fix=error.fix)
        watch = Stopwatch()
        with watch.stage("radiomics"):
            scaled = [scaler.transform(prepared.radiomics_F[None]) for scaler in self._scalers]
            # Without scalers both lists are empty: these rows keep concatenate and reduce defined.
            none_R = np.zeros(N_RADIOMICS, np.bool_)
            radiomics_FR = np.concatenate([np.zeros((0, N_RADIOMICS), np.float32), *(s.values_NF for s in scaled)])
            notices = case_notices(
                prepared,
                imputed_R=np.logical_or.reduce([none_R, *(s.imputed_NF[0] for s in scaled)]),
                clipped_R=np.logical_or.reduce([none_R, *(s.clipped_NF[0] for s in scaled)]),
                manifest=self._manifest,
                system=self._config.system.name,
            )
        return CaseInputs(
            case=prepared,
            radiomics_FR=radiomics_FR,
            notices=notices,
            seconds=sum_stages(prepared.seconds, watch.seconds),
            wall=perf_counter() - start,
        )

    def fetch(self, case: Case) -> None:
        """Ask the operating system to read the image files that `read` will need into its page cache.

        Missing files are ignored here.
        """
        if self._manifest.uses("image") and not isinstance(case, CaseArrays):
            for path in (case.ct, case.mask):
                with suppress(OSError):  # `read` reports the error of an unreadable file
                    read_ahead(path)


class PendingCase:
    """A case in preparation: its text is available before its other inputs."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.text: Future[str | None] = Future()
        """The clinical text; None if the case was rejected before its text was rendered."""
        self.inputs: Future[CaseInputs | RejectedCase]
        """Outcome of the preparation."""


class Prefetcher:
    """Iterator over cases, in order and in groups, that prepares the next cases in worker threads.

    Use it as a context manager. Prefetching starts only when the caller requests a group or calls `computing`. There
    are two modes:

    - Overlapped (`in_rounds=False`), for an engine on a GPU or on some of the cores. A group is one case. `computing`
      starts the preparation of the next cases, which runs while the engine computes.
    - Rounds (`in_rounds=True`), for an engine on the same cores as the workers. When no prepared case is left, a whole
      round is prepared in parallel and returned as one group; the engine is idle meanwhile. Decompressing one gzip
      stream occupies one core, and a layer that runs on all cores waits for its slowest thread, so overlapping would
      slow down every layer. A round decompresses one stream on each core instead (`docs/performance.md`).

    Args:
        read: prepares one case.
        cases: the cases, in order.
        max_ahead: maximum number of cases prepared or in preparation but not yet returned; the size of a round.
        in_rounds: whether to work in rounds instead of overlapping with the engine.
        readers: number of worker threads.
        fetch: reads a case's files into the page cache; called for the cases of the next round.
    """

    def __init__(
        self,
        read: Callable[[Case, Callable[[str], None]], CaseInputs | RejectedCase],
        cases: Sequence[Case],
        *,
        max_ahead: int,
        in_rounds: bool = False,
        readers: int = 1,
        fetch: Callable[[Case], None] = lambda case: None,
    ) -> None:
        self._read, self._cases, self._max_ahead, self._fetch = read, deque(cases), max_ahead, fetch
        self._in_rounds = in_rounds
        self._ahead: deque[PendingCase] = deque()
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
            pending = PendingCase(self._cases.popleft())
            pending.inputs = self._workers.submit(self._prepare, pending)
            self._ahead.append(pending)
        self._fetched = 0

    def _prepare(self, pending: PendingCase) -> CaseInputs | RejectedCase:
        try:
            return self._read(pending.case, pending.text.set_result)
        finally:
            # Rejected or failed before its text was rendered: release a consumer that waits for the text.
            if not pending.text.done():
                pending.text.set_result(None)

    def __iter__(self) -> Iterator[list[PendingCase]]:
        return self

    def __next__(self) -> list[PendingCase]:
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
