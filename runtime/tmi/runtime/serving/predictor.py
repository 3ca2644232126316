"""From case folders to answers: the Python API of `tmi predict`.

    with Predictor.open("bundle") as predictor:
        for answer in predictor.stream(["case_a", "case_b"], batch=2):
            ...

Threads share the road. Some prepare (`tmi.runtime.serving.case_loader`): they read and check a case, make its CT, and
scale its radiomics by each fold's own scaler. This one runs the engine: the text of a case, then CT and fusion of a
whole batch (`tmi.runtime.inference.ensemble`).

A GPU computes while the next batch is prepared, and a text while its own images are being read. An engine on the CPU
shares its cores with whoever reads: cases are prepared in rounds, one for each core at a time, and the engine rests
meanwhile; a case that is alone in its round has its text encoded while its images are read. However many cases there
are, few are in memory: two batches, or one round and what of a batch was left from the one before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from tmi.runtime.bundle.reader import Bundle, open_bundle
from tmi.runtime.engines.registry import Engine
from tmi.runtime.engines.selection import AUTO, EngineRecord
from tmi.runtime.inference.embedding_cache import EmbeddingCache, reused_branches
from tmi.runtime.inference.ensemble import Features, encode_ct, fuse
from tmi.runtime.serving.case_loader import CaseInputs, CaseLoader, PendingCase, Prefetcher
from tmi.runtime.serving.postprocessing import to_prediction, truncated_notice
from tmi.runtime.serving.results import STAGES, CaseResult, RejectedCase
from tmi.runtime.serving.startup import open_selected_engine
from tmi.runtime.serving.text_encoding import EncodedText, TextBranch, computing
from tmi.runtime.serving.timing import Stopwatch, split_overlap, sum_stages
from tmi.runtime.verification.self_test import LogCallback
from tmi.toolkit.cases.case import Case, find_cases
from tmi.toolkit.clinical.rendering import require_rendering
from tmi.toolkit.clinical.schema import SCHEMA_FILE, stored_schema
from tmi.toolkit.compute.cpu import available_cores
from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.preprocessing.cache import PreparedCache
from tmi.toolkit.radiomics.scaler import RadiomicsScaler

CaseLike = Case | Path | str
MAX_READERS = 4
"""Cases that are prepared at the same time, at the most: each takes the memory of its CT and of its prepared volume."""


@dataclass(kw_only=True)
class _QueuedCase:
    """A case that waits for its batch: its text is encoded, its CT is not."""

    inputs: CaseInputs
    text: Features
    truncated: bool
    """Whether its text was longer than the encoder takes."""
    reused: tuple[str, ...]
    """Branches that were kept from before."""
    waited: dict[str, float]
    """Seconds by stage that this thread spent on it or waited for it."""
    overlapped: dict[str, float]
    """Seconds by stage of its preparation that passed behind other work."""
    wall: float
    """Seconds that it took this thread."""


class Predictor:
    """An opened bundle on an opened engine. Use as a context manager, or call `close`."""

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        record: EngineRecord,
        *,
        cache: PreparedCache | None = None,
        reuse: bool = False,
    ) -> None:
        """Take a bundle and an engine that has it open; `Predictor.open` makes both.

        Raises:
            DamagedError: the bundle's clinical text is not that of this version.
        """
        self.bundle = bundle
        self.engine_record = record
        self._engine = engine
        self._manifest = bundle.manifest
        self._config = bundle.manifest.parsed_config()
        self.embeddings = EmbeddingCache(bundle, record) if reuse else None
        """What keeps the features of CT and text; None keeps nothing."""
        clinical = self._manifest.clinical
        if (clinical.schema, clinical.rendering) != (SCHEMA_FILE, self._config.clinical.rendering):
            raise DamagedError("bundle: its config and its clinical text disagree", fix="export the bundle again")
        if self._manifest.uses("clinical"):
            require_rendering(clinical.rendering, clinical.rendering_version, kind="bundle")
        schema = stored_schema(bundle.folder, kind="bundle")
        scalers = [
            RadiomicsScaler.load(bundle.folder / fold.scaler)
            for fold in self._manifest.folds
            if fold.scaler is not None
        ]
        self._reader = CaseLoader(self._manifest, schema, scalers, cache=cache)
        self._texts = TextBranch(bundle, engine, self.embeddings)

    @classmethod
    def open(
        cls,
        bundle: Path | str,
        *,
        engine: str = AUTO,
        precision: str = "auto",
        threads: int | None = None,
        cache: PreparedCache | None = None,
        reuse: bool = False,
        key: Path | None = None,
        verify: bool = True,
        log: LogCallback = lambda line: None,
    ) -> Self:
        """Open a bundle, after comparing every byte of it with its manifest.

        The first time that this machine opens it with an engine, a golden case must be answered as at the export
        (`tmi.runtime.verification.self_test`).

        Args:
            bundle: a bundle's folder.
            engine: `auto` or a name in `tmi.runtime.engines.registry.ENGINES`; what was taken is in `engine_record`.
            precision: `auto`, or `bf16` or `fp32`: only an engine that computes in that.
            threads: threads of the engine; None takes all cores.
            cache: keeps what is made from the images of a case for the next time; None keeps nothing.
            reuse: keep what the encoders make of CT and text for the next time
            (`tmi.runtime.inference.embedding_cache`).
            key: public key (PEM) that must have signed the bundle; None asks for no signature.
            verify: False skips the check at the first opening; `engine_record` says so.
            log: told one line about a first opening.

        Raises:
            UsageError: no such bundle or engine.
            DamagedError: the bundle is damaged, was edited, is not signed by the key, or the engine cannot load it.
            UnavailableError: the engine is not installed, or the bundle has no graphs for it.
            ParityError: at its first opening here, it does not answer like the validated model.
        """
        opened = open_bundle(Path(bundle))
        if key is not None:
            from tmi.runtime.bundle.signing import check_signature  # its packages are slow to import, and an extra

            check_signature(opened.folder, key)
        running, record = open_selected_engine(
            engine, opened, precision=precision, threads=threads, verify=verify, log=log
        )
        try:
            return cls(opened, running, record, cache=cache, reuse=reuse)
        except BaseException:
            running.close()
            raise

    def close(self) -> None:
        """Close the engine; may be called twice."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def predict(
        self, cases: CaseLike | Iterable[CaseLike], *, batch: int = 1, mask_label: int | None = None
    ) -> list[CaseResult]:
        """Answers for all cases, in the order given; a bad case is a `RejectedCase` and stops no other.

        Args:
            cases: case folders, cohort folders or `Case`s; one alone may stand by itself.
            batch: cases computed together; the answers do not depend on it beyond rounding.
            mask_label: value of the mask's voxels that are liver; None: every value but 0. `Case`s bring their own.

        Raises:
            UsageError: no case, a malformed cohort table, one case id twice, or a batch below 1.
        """
        return list(self.stream(cases, batch=batch, mask_label=mask_label))

    def stream(
        self, cases: CaseLike | Iterable[CaseLike], *, batch: int = 1, mask_label: int | None = None
    ) -> Iterator[CaseResult]:
        """As `predict`, one answer after the other as its batch is done; few cases are in memory at a time."""
        if batch < 1:
            raise UsageError(f"a batch of {batch} cases", fix="give a batch of 1 or more")
        return self._stream(resolve_cases(cases, mask_label=mask_label), batch)

    def _stream(self, cases: Sequence[Case], batch: int) -> Iterator[CaseResult]:
        waiting: list[_QueuedCase | RejectedCase] = []
        cores = available_cores()
        if self._engine.copied_seconds is None and self.engine_record.threads >= cores:
            readers = min(cores, MAX_READERS)
            most = -(-readers // batch) * batch
            looking = Prefetcher(
                self._reader.read, cases, max_ahead=most, in_rounds=True, readers=readers, fetch=self._reader.fetch
            )
        else:  # a device of its own, or cores that the engine leaves alone
            looking = Prefetcher(self._reader.read, cases, max_ahead=batch)
        with looking as ahead:
            for group in ahead:
                for row in self._queued_cases(group):
                    waiting.append(row)
                    del row  # it holds the case's arrays
                    while waiting and isinstance(waiting[0], RejectedCase):
                        yield waiting.pop(0)  # type: ignore[misc]
                    if sum(isinstance(w, _QueuedCase) for w in waiting) == batch:
                        ahead.computing()
                        answers, waiting = self._predict_batch(waiting), []
                        yield from answers
        if waiting:
            yield from self._predict_batch(waiting)

    def _queued_cases(self, group: list[PendingCase]) -> Iterator[_QueuedCase | RejectedCase]:
        """The rows of a group, which is empty afterwards: each case's arrays are held by its own row alone.

        A case alone has its text encoded while its images are being read. A round is waited for first, and its texts
        run together as far as they are of one length.
        """
        watch = Stopwatch()
        with watch.stage("waiting"):
            if len(group) > 1:
                wait([pending.inputs for pending in group])
            texts = [pending.text.result() for pending in group if len(group) == 1 or _is_prepared(pending)]
        encoded = deque(self._texts.encode(texts, watch))
        with watch.stage("waiting"):
            ready = deque(pending.inputs.result() for pending in group)
        group.clear()
        wall, waited = watch.wall, watch.seconds.pop("waiting")
        cases = sum(isinstance(inputs, CaseInputs) for inputs in ready)
        together = sum(inputs.wall for inputs in ready if isinstance(inputs, CaseInputs))
        shared = {name: seconds / max(1, cases) for name, seconds in watch.seconds.items()}
        share = waited / together if together > 0 else 0.0
        if cases < len(ready):
            share = min(1.0, share)  # what was waited for refused cases alone is no one's
        while ready:  # nothing of a case is held here while its row is out
            yield _queued_case(
                ready.popleft(), encoded, share=share, shared=shared, work=(wall - waited) / max(1, cases)
            )

    def _predict_batch(self, waiting: Sequence[_QueuedCase | RejectedCase]) -> list[CaseResult]:
        """Run one batch; refusals among its cases keep their places."""
        watch = Stopwatch()
        rows = [w for w in waiting if isinstance(w, _QueuedCase)]
        if not rows:
            return [w for w in waiting if isinstance(w, RejectedCase)]
        with watch.stage("other"):
            cts = [r.inputs.case.ct_1DHW for r in rows]
            if len(cts) == 1:  # is not copied
                ct_B1DHW = cts[0][None]
            else:
                ct_B1DHW = np.stack(cts, out=self._reader.memory.empty((len(cts), *cts[0].shape), cts[0].dtype))
            radiomics_BFR = np.stack([r.inputs.radiomics_FR for r in rows])
            text = {name: np.concatenate([r.text[name] for r in rows]) for name in rows[0].text}
        with computing(self._engine, watch, "ct"):
            ct = encode_ct(self._engine, self._manifest, ct_B1DHW, cache=self.embeddings)
        with computing(self._engine, watch, "fusion"):
            logits_BFK = fuse(self._engine, self._manifest, ct, text, radiomics_BFR)
        with watch.stage("other"):
            judged = []
            for number, row in enumerate(rows):
                longest = self._config.clinical.max_length
                judged.append(
                    to_prediction(
                        row.inputs.case.case_id,
                        logits_BFK[number : number + 1],
                        manifest=self._manifest,
                        digest=self.bundle.digest,
                        engine=self._engine.name,
                        notices=row.inputs.notices + ((truncated_notice(longest),) if row.truncated else ()),
                    )
                )
            reused = [reused_branches("ct", ct, self.embeddings, row=number) for number in range(len(rows))]
        shared = {name: seconds / len(rows) for name, seconds in watch.seconds.items()}
        wall = watch.wall / len(rows)
        answers = iter(
            _with_timing(answer, row, shared, wall=wall, reused=found)
            for answer, row, found in zip(judged, rows, reused, strict=True)
        )
        return [one if isinstance(one, RejectedCase) else next(answers) for one in waiting]


def _queued_case(
    inputs: CaseInputs | RejectedCase,
    texts: deque[EncodedText],
    *,
    share: float,
    shared: Mapping[str, float],
    work: float,
) -> _QueuedCase | RejectedCase:
    """A case and its text, or its refusal.

    Args:
        inputs: of the case.
        texts: its own is the next.
        share: part of its preparation that was waited for.
        shared: seconds by stage of what else was done for it.
        work: seconds of that, measured by themselves.
    """
    if isinstance(inputs, RejectedCase):
        return inputs
    text, waited = texts.popleft(), share * inputs.wall
    seen, hidden = split_overlap(inputs.seconds, wall=inputs.wall, waited=waited)
    return _QueuedCase(
        inputs=inputs,
        text=text.features,
        truncated=text.truncated,
        reused=text.reused,
        waited=sum_stages(seen, shared),
        overlapped=hidden,
        wall=waited + work,
    )


def _is_prepared(pending: PendingCase) -> bool:
    """Whether a case that was waited for was not refused."""
    return isinstance(pending.inputs.result(), CaseInputs)


def _with_timing(
    answer: CaseResult, row: _QueuedCase, shared: Mapping[str, float], *, wall: float, reused: tuple[str, ...]
) -> CaseResult:
    """The answer with its waterfall: what its own row took and its part of the batch."""
    if isinstance(answer, RejectedCase):
        return answer
    seconds = sum_stages(row.waited, dict.fromkeys(STAGES, 0.0), shared)
    return replace(
        answer,
        seconds={**seconds, "total": row.wall + wall},
        overlapped=row.overlapped,
        reused=(*reused, *row.reused),
    )


def resolve_cases(cases: CaseLike | Iterable[CaseLike], *, mask_label: int | None = None) -> list[Case]:
    """Cases from folders, cohort folders and `Case`s, in the order given.

    Raises:
        UsageError: no case, a malformed cohort table, or one case id twice.
    """
    items: list[CaseLike] = [cases] if isinstance(cases, (Case, Path, str)) else list(cases)
    found: list[Case] = []
    for item in items:
        found.extend([item] if isinstance(item, Case) else find_cases([Path(item)], mask_label=mask_label))
    if not found:
        raise UsageError("no case given", fix="give case folders or a cohort folder")
    seen: set[str] = set()
    for case in found:
        if case.case_id in seen:
            raise UsageError(
                f"case id {case.case_id} is given twice", fix="give cases of the same name to separate commands"
            )
        seen.add(case.case_id)
    return found
