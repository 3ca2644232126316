"""From a case folder to the inputs of the fold models, and the threads that do it ahead of the engine.

They are never more than a fixed number of cases ahead: memory does not grow with the cohort.
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
from tmi.toolkit.cases.case import Case
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
    """A case that is ready for the engine."""

    case: PreparedCase
    """Its CT, text and unscaled radiomics."""
    radiomics_FR: Float32[NDArray[np.float32], "F R"]
    """Scaled by each fold's own scaler; without a row where the bundle sees no radiomics."""
    notices: tuple[Notice, ...]
    """What the reader of the answer must know."""
    seconds: dict[str, float]
    """Seconds by stage of the preparation."""
    wall: float
    """Seconds that it took, measured by itself."""


class CaseLoader:
    """Reads, checks and prepares cases for one bundle.

    Args:
        manifest: of the bundle.
        schema: its clinical schema.
        scalers: of its folds, in the order of the manifest; none where it sees no radiomics.
        cache: keeps what is made from the images of a case; None keeps nothing.
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
        """Where the large arrays of its cases come from."""

    def read(self, case: Case, on_text_ready: Callable[[str], None]) -> CaseInputs | RejectedCase:
        """The inputs, or why there are none.

        Args:
            case: the case.
            on_text_ready: told the clinical text before any image is read.
        """
        start = perf_counter()
        try:
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
            # This one case needs what is not installed (say, radiomics extraction); the others do not.
            return RejectedCase(case_id=case.case_id, code="unavailable", what=error.what, fix=error.fix)
        except OSError as error:
            what = f"its files cannot be read ({error.strerror or type(error).__name__})"
            fix = "let the user who predicts read the folder and its files"
            return RejectedCase(case_id=case.case_id, code="case-unreadable", what=what, fix=fix)
        watch = Stopwatch()
        with watch.stage("radiomics"):
            scaled = [scaler.transform(prepared.radiomics_F[None]) for scaler in self._scalers]
            nothing = np.zeros((1, N_RADIOMICS), np.bool_)
            radiomics_FR = np.concatenate([np.zeros((0, N_RADIOMICS), np.float32), *(s.values_NF for s in scaled)])
            notices = case_notices(
                prepared,
                imputed_R=np.logical_or.reduce([nothing[0], *(s.imputed_NF[0] for s in scaled)]),
                clipped_R=np.logical_or.reduce([nothing[0], *(s.clipped_NF[0] for s in scaled)]),
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
        """Have the system fetch from the disk what `read` will want of the case, as far as it is there."""
        if self._manifest.uses("image"):
            for path in (case.ct, case.mask):
                with suppress(OSError):  # what is wrong with a file is told where it is read
                    read_ahead(path)


class PendingCase:
    """A case on its way: its text comes first, the rest later."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.text: Future[str | None] = Future()
        """The clinical text; None where the case was refused before it was known."""
        self.inputs: Future[CaseInputs | RejectedCase]
        """What the preparation came to."""


class Prefetcher:
    """Every case in order, by groups, while threads prepare some that were not asked for yet. Use as a context manager.

    When they do so is the caller's to say: nothing is begun by itself but what is asked for. There are two ways.

    Beside a GPU, when it starts to compute; a group is one case. In rounds, when no case is left: the next ones are
    then prepared at the same time and given out as one group, for which the engine shall wait. That is for engines on
    the cores that read, too. A gzip stream keeps one core busy; of a layer that runs on all cores, all threads wait for
    the one whose core it took. A round has a stream for each core instead (`docs/performance.md`).

    Args:
        read: prepares one case.
        cases: in their order.
        max_ahead: cases ahead of the one that is given out, which is a whole round.
        in_rounds: in rounds, not beside a GPU.
        readers: cases that are prepared at the same time.
        fetch: has the system fetch a case's files; called for those of the next round.
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
        """Told that the engine starts to compute what was given out; returns at once.

        Beside a GPU the next cases are begun. In rounds their files are fetched from the disk, which takes no core.
        """
        if not self._in_rounds:
            self._begin()
            return
        for case in islice(self._cases, self._fetched, self._max_ahead):
            self._workers.submit(self._fetch, case)
            self._fetched += 1

    def _begin(self) -> None:
        while self._cases and len(self._ahead) < self._max_ahead:
            pending = PendingCase(self._cases.popleft())
            pending.inputs = self._workers.submit(self._prepare, pending)
            self._ahead.append(pending)
        self._fetched = 0

    def _prepare(self, pending: PendingCase) -> CaseInputs | RejectedCase:
        try:
            return self._read(pending.case, pending.text.set_result)
        finally:
            if not pending.text.done():
                pending.text.set_result(None)

    def __iter__(self) -> Iterator[list[PendingCase]]:
        return self

    def __next__(self) -> list[PendingCase]:
        if not self._ahead:
            self._begin()
        if not self._ahead:
            raise StopIteration
        return [self._ahead.popleft() for _ in range(len(self._ahead) if self._in_rounds else 1)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._workers.shutdown(cancel_futures=True)
