"""Prediction of case folders: the Python API of `tmi predict`.

    with Predictor.open("bundle") as predictor:
        for result in predictor.stream(["case_a", "case_b"], batch=2):
            ...

Three parts do the work, and this module connects them:

- `Prefetcher` (`tmi.runtime.serving.prefetching`): worker threads prepare the next cases, in order and within a bound.
- `InferencePipeline` (`tmi.runtime.serving.pipeline`): the stages of a prediction, from a case to its result.
- `Trace` (`tmi.runtime.serving.trace`): spans of both, from which the seconds of each stage are computed afterwards.

A GPU computes while the next batch is prepared, and it encodes a text while the images of the same case are read. An
engine on the CPU shares its cores with the workers. Cases are therefore prepared in rounds, one case for each core,
while the engine is idle; a case that is alone in its round has its text encoded while its images are read.

Memory does not grow with the number of cases. At most two batches are held, or one round and the cases left over from
the batch before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.bundle.signing import Keys, open_trusted_bundle
from tmi.runtime.engines.registry import Engine
from tmi.runtime.engines.selection import AUTO, EngineRecord
from tmi.runtime.inference.embedding_cache import EmbeddingCache
from tmi.runtime.serving.pipeline import CaseInputs, InferencePipeline
from tmi.runtime.serving.prefetching import PendingCase, Prefetcher, fetch_images
from tmi.runtime.serving.results import COPIES, STAGES, CaseResult, Prediction, RejectedCase
from tmi.runtime.serving.startup import open_selected_engine
from tmi.runtime.serving.text_encoding import EncodedText
from tmi.runtime.serving.trace import OTHER, PREPARATION, TURN, WAITING, CaseSpan, Trace, sum_stages, waterfall
from tmi.runtime.verification.self_test import LogCallback
from tmi.toolkit.cases.case import Case, MaskLabel, find_cases
from tmi.toolkit.compute.buffer_pool import BufferPool
from tmi.toolkit.compute.cpu import available_cores
from tmi.toolkit.compute.stage_timer import StageTimer
from tmi.toolkit.errors import UsageError
from tmi.toolkit.preprocessing.cache import PreparedCache
from tmi.toolkit.preprocessing.pipeline import STAGES as PREPARATION_STAGES
from tmi.toolkit.trust.conformal import COVERAGE

CaseLike = Case | Path | str
"""A case: its folder, a `Case`, or a `CaseArrays` in memory; also a folder of cases."""
MAX_READERS = 4
"""Maximum number of cases prepared in parallel; each needs the memory of its CT and of its prepared volume."""


Prepared = CaseInputs | RejectedCase
"""Outcome of the preparation of a case."""


@dataclass(frozen=True, kw_only=True)
class _QueuedCase:
    """A case that waits for its batch: its text is encoded, its CT is not yet."""

    inputs: CaseInputs
    """Its inputs."""
    text: EncodedText
    """Its encoded text."""
    spans: tuple[CaseSpan, ...]
    """Spans so far of the cases that were prepared with it."""

    @property
    def case_id(self) -> str:
        """Id of the case."""
        return self.inputs.case.case_id


class Predictor:
    """A bundle that is open on an engine. Use it as a context manager, or call `close`."""

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        record: EngineRecord,
        *,
        cache: PreparedCache | None = None,
        reuse: bool = False,
        pipeline: InferencePipeline | None = None,
        cores: int | None = None,
        trust_level: float | None = None,
        coverage: float = COVERAGE,
    ) -> None:
        """Build a predictor from an engine that has the bundle open; `Predictor.open` opens both.

        Args:
            bundle: the opened bundle.
            engine: an engine that has the bundle open.
            record: record of the engine.
            cache: as in `Predictor.open`.
            reuse: as in `Predictor.open`.
            pipeline: stages of the prediction, which have their own caches; None: those of the bundle on the engine,
                with `cache` and `reuse`.
            cores: number of cores that the engine and the preparation share; None: the available ones.
            trust_level, coverage: as in `Predictor.open`.

        Raises:
            UsageError: `cache`, `reuse` or `trust_level` beside a pipeline, which would not use them; or a trust level
                that the bundle cannot be assessed at.
            DamagedError: the bundle's clinical text was rendered by another version.
        """
        if pipeline is not None and (reuse or cache is not None or trust_level is not None):
            raise UsageError(
                "a pipeline has its own caches and trust level",
                fix="give `cache`, `embeddings` and `trust_level` to the pipeline",
            )
        self.bundle = bundle
        self.engine_record = record
        self.embeddings = EmbeddingCache(bundle, record) if reuse else None
        """Cache of CT and text features; None if `reuse` is off."""
        self.pipeline = pipeline or InferencePipeline(
            bundle,
            engine,
            cache=cache,
            embeddings=self.embeddings,
            empty=BufferPool().empty,
            trust_level=trust_level,
            coverage=coverage,
        )
        """Stages of the prediction; `pipeline.run` predicts a batch without threads and timing."""
        self.trust_level, self.coverage = trust_level, coverage
        """Trust level that was given, None: the manifest's; and coverage of the prediction sets."""
        self._engine = engine
        self._cores = cores

    def __repr__(self) -> str:
        return f"Predictor({str(self.bundle.folder)!r}, engine={self.engine_record.name!r})"

    @classmethod
    def open(
        cls,
        bundle: Path | str | Bundle,
        *,
        engine: str = AUTO,
        precision: str = "auto",
        threads: int | None = None,
        cache: PreparedCache | None = None,
        reuse: bool = False,
        key: Keys = None,
        verify: bool = True,
        trust_level: float | None = None,
        coverage: float = COVERAGE,
        log: LogCallback = lambda line: None,
    ) -> Self:
        """Open a bundle after comparing every byte of it with its manifest.

        The first time that a machine opens a bundle with an engine, a self-test compares the engine's output for a
        golden case with the reference of the export (`tmi.runtime.verification.self_test`).

        Args:
            bundle: folder of the bundle, or a bundle that is already open, whose signature is then not checked again.
            engine: `auto` or a name in `tmi.runtime.engines.registry.ENGINES`; the choice is in `engine_record`.
            precision: `auto`, or `bf16` or `fp32` for engines that compute in that format only.
            threads: threads of the engine; None uses all cores.
            cache: disk cache of prepared images; None disables it.
            reuse: whether to cache the CT and text features of the encoders
                (`tmi.runtime.inference.embedding_cache`).
            key: public keys (PEM) of which one must have signed the bundle; None: those of `tmi.toml` in the working
                directory, if any.
            verify: False skips the self-test, which is recorded in `engine_record`.
            trust_level: largest joint p-value at which a case is not trusted; None: the manifest's.
            coverage: coverage of the prediction sets.
            log: receives one line about a self-test.

        Raises:
            UsageError: no such bundle or engine.
            DamagedError: the bundle is damaged, was edited, is not signed by the key, or the engine cannot load it.
            UnavailableError: the engine is not installed, or the bundle has no graphs for it.
            ParityError: the engine fails the self-test on this machine.
            TypeError: an argument has a wrong type.
        """
        _require_type("bundle", bundle, Path, str, Bundle)
        _require_type("engine", engine, str)
        _require_type("precision", precision, str)
        _require_type("threads", threads, int, type(None))
        opened = bundle if isinstance(bundle, Bundle) else open_trusted_bundle(Path(bundle), key)
        opened_engine, record = open_selected_engine(
            engine, opened, precision=precision, threads=threads, verify=verify, log=log
        )
        try:
            return cls(
                opened, opened_engine, record, cache=cache, reuse=reuse, trust_level=trust_level, coverage=coverage
            )
        except BaseException:
            opened_engine.close()
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
        self, cases: CaseLike | Iterable[CaseLike], *, batch: int = 1, mask_label: MaskLabel | None = None
    ) -> list[CaseResult]:
        """Predict cases. A bad case becomes a `RejectedCase` and does not affect the others.

        Args:
            cases: case folders, cohort folders, `Case`s, or cases in memory (`CaseArrays`); a single one needs no list.
            batch: number of cases computed together; predictions do not depend on it beyond rounding.
            mask_label: value of the liver's voxels in the mask, or several values; None means every value but 0. A
                `Case` has its own.

        Returns:
            One result for each case, in the order given.

        Raises:
            UsageError: no case, a malformed cohort table, a duplicate case id, or a batch below 1.
            TypeError: an argument has a wrong type.
        """
        return list(self.stream(cases, batch=batch, mask_label=mask_label))

    def stream(
        self,
        cases: CaseLike | Iterable[CaseLike],
        *,
        batch: int = 1,
        mask_label: MaskLabel | None = None,
        exact: bool = False,
    ) -> Iterator[CaseResult]:
        """Like `predict`, but yields results as their batches finish; few cases are in memory at a time.

        `exact`, with a batch of 1, computes no stage of two cases together: each result equals that of the case alone
        to the last bit. Without it texts that are prepared together are encoded together.
        """
        _require_type("batch", batch, int)
        if batch < 1:
            raise UsageError(f"invalid batch size {batch}", fix="give a batch size of 1 or more")
        if exact and batch > 1:
            raise UsageError(f"a batch of {batch} is computed together", fix="give a batch size of 1, or not exact")
        return self._stream(resolve_cases(cases, mask_label=mask_label), batch, exact=exact)

    def _stream(self, cases: Sequence[Case], batch: int, *, exact: bool) -> Iterator[CaseResult]:
        waiting: list[_QueuedCase | RejectedCase] = []
        trace = Trace()
        with self._prefetcher(cases, batch, trace) as prefetcher:
            for group in prefetcher:
                for row in self._queued_cases(group, trace, exact=exact):
                    waiting.append(row)
                    del row  # this name would keep the case's arrays alive during the next preparation
                    # Rejected cases at the front have no batch to wait for; later ones keep their place in the order.
                    while waiting and isinstance(waiting[0], RejectedCase):
                        yield waiting.pop(0)  # type: ignore[misc]
                    if sum(isinstance(w, _QueuedCase) for w in waiting) == batch:
                        prefetcher.computing()  # before the CT, the longest stage, so that the next batch overlaps it
                        results, waiting = self._predict_batch(waiting, trace), []
                        yield from results
        if waiting:
            yield from self._predict_batch(waiting, trace)

    def _prefetcher(self, cases: Sequence[Case], batch: int, trace: Trace) -> Prefetcher[Prepared]:
        """Prefetcher for the engine: in rounds if it computes on the cores of the workers, else overlapped."""

        def prepare(case: Case, on_text_ready: Callable[[str], None]) -> Prepared:
            ids = (case.case_id,)
            with trace.span(PREPARATION, ids, worker=True):
                prepared = self.pipeline.prepare(case, on_text_ready)
                if isinstance(prepared, RejectedCase):
                    return prepared
                trace.add(prepared.spans, ids, worker=True)
                with trace.span("radiomics", ids, worker=True):
                    return self.pipeline.scale(prepared)

        cores = self._cores or available_cores()
        # `copied_seconds` is None for an engine on the CPU: with all cores it competes with the workers.
        if self._engine.copied_seconds is None and self.engine_record.threads >= cores:
            readers = min(cores, MAX_READERS)
            round_size = -(-readers // batch) * batch  # whole batches, so that no round leaves a partial batch behind
            fetch = fetch_images if self.bundle.manifest.uses("image") else lambda case: None
            return Prefetcher(prepare, cases, max_ahead=round_size, in_rounds=True, readers=readers, fetch=fetch)
        # an engine with its own device, or one that leaves some cores to the workers
        return Prefetcher(prepare, cases, max_ahead=batch)

    def _queued_cases(
        self, group: list[PendingCase[Prepared]], trace: Trace, *, exact: bool
    ) -> Iterator[_QueuedCase | RejectedCase]:
        """Encode the texts of a group and yield its cases. The group is emptied, so that only a row holds its arrays.

        The text of a single case is encoded while its images are read. A round is prepared completely first; its texts
        of equal length then run as one batch, unless it must be `exact`.
        """
        ids = [pending.case.case_id for pending in group]
        with trace.span(TURN, ids):
            with trace.span(WAITING, ids):
                if len(group) > 1:
                    wait([pending.inputs for pending in group])
                # Of a round, texts of rejected cases are left out; of a single case that is not yet known.
                texts = [pending.text.result() for pending in group if len(group) == 1 or _is_prepared(pending)]
            with trace.span("tokenise", ids):
                tokens = self.pipeline.tokenise(texts)
            with self._engine_span(trace, "text", ids):
                each = [[one] for one in tokens] if exact else [tokens]
                encoded = deque(text for together in each for text in self.pipeline.encode_text(together))
            with trace.span(WAITING, ids):
                ready = deque(pending.inputs.result() for pending in group)
        group.clear()
        spans = trace.take(ids, rejected=[inputs.case_id for inputs in ready if isinstance(inputs, RejectedCase)])
        while ready:  # popleft: no reference to a case is kept here once its row is yielded
            yield _queued_case(ready.popleft(), encoded, spans)

    def _predict_batch(self, waiting: Sequence[_QueuedCase | RejectedCase], trace: Trace) -> list[CaseResult]:
        """Run one batch; rejected cases in it keep their positions."""
        rows = [w for w in waiting if isinstance(w, _QueuedCase)]
        if not rows:
            return [w for w in waiting if isinstance(w, RejectedCase)]
        ids = [row.case_id for row in rows]
        with trace.span(TURN, ids):
            with trace.span(OTHER, ids):
                batch = self.pipeline.collate([row.inputs for row in rows], [row.text for row in rows])
            with self._engine_span(trace, "ct", ids):
                ct = self.pipeline.encode_ct(batch)
            with self._engine_span(trace, "fusion", ids):
                logits_BFK = self.pipeline.fuse(batch, ct)
            with trace.span(OTHER, ids):
                results = self.pipeline.postprocess(batch, ct, logits_BFK)
        spans = trace.take(ids)
        timed = iter([_timed(result, (*row.spans, *spans)) for row, result in zip(rows, results, strict=True)])
        return [entry if isinstance(entry, RejectedCase) else next(timed) for entry in waiting]

    @contextmanager
    def _engine_span(self, trace: Trace, stage: str, ids: Sequence[str]) -> Iterator[None]:
        """Record a stage of the engine; seconds of copies to and from a device are a span of `copies` at its end."""
        before, timer = self._engine.copied_seconds, StageTimer()
        yield
        if before is not None and self._engine.copied_seconds is not None:
            timer.record(COPIES, self._engine.copied_seconds - before)
        timer.lap(stage)
        trace.add(timer.spans, ids)


def _queued_case(
    inputs: Prepared, texts: deque[EncodedText], spans: tuple[CaseSpan, ...]
) -> _QueuedCase | RejectedCase:
    """Combine the inputs of a case with the first of the encoded texts, which is removed; a rejected case has none."""
    return inputs if isinstance(inputs, RejectedCase) else _QueuedCase(inputs=inputs, text=texts.popleft(), spans=spans)


def _is_prepared(pending: PendingCase[Prepared]) -> bool:
    """Whether a finished preparation did not end in a rejection."""
    return isinstance(pending.inputs.result(), CaseInputs)


def _timed(result: CaseResult, spans: Sequence[CaseSpan]) -> CaseResult:
    """Add the seconds of the case to a prediction; every prediction lists all stages, in pipeline order."""
    if not isinstance(result, Prediction):
        return result
    times = waterfall(spans, result.case_id)
    return replace(
        result,
        seconds=sum_stages(dict.fromkeys((*PREPARATION_STAGES, *STAGES), 0.0), times.seconds),
        overlapped=sum_stages(dict.fromkeys(PREPARATION_STAGES, 0.0), times.overlapped),
    )


def _require_type(name: str, value: object, *kinds: type) -> None:
    """Reject an argument of another type with a message that names it.

    Raises:
        TypeError: `value` is none of `kinds`; a truth value is no int.
    """
    if not isinstance(value, kinds) or (isinstance(value, bool) and int in kinds):
        wanted = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise TypeError(f"{name} must be {wanted}, not {type(value).__name__}")


def resolve_cases(cases: CaseLike | Iterable[CaseLike], *, mask_label: MaskLabel | None = None) -> list[Case]:
    """Resolve case folders, cohort folders and `Case`s to cases, in the order given.

    Args:
        cases: as in `Predictor.predict`.
        mask_label: as in `Predictor.predict`.

    Raises:
        UsageError: no case, a malformed cohort table, or a duplicate case id.
        TypeError: an item is no path and no case.
    """
    _require_type("cases", cases, Case, Path, str, Iterable)
    _require_type("mask_label", mask_label, int, tuple, type(None))
    items: list[CaseLike] = [cases] if isinstance(cases, (Case, Path, str)) else list(cases)
    for number, item in enumerate(items):
        _require_type(f"cases[{number}]", item, Case, Path, str)
    resolved: list[Case] = []
    for item in items:
        resolved.extend([item] if isinstance(item, Case) else find_cases([Path(item)], mask_label=mask_label))
    if not resolved:
        raise UsageError("no case given", fix="give case folders or a cohort folder")
    case_ids: set[str] = set()
    for case in resolved:
        if case.case_id in case_ids:
            raise UsageError(
                f"case id {case.case_id} is given twice", fix="predict cases of the same name in separate commands"
            )
        case_ids.add(case.case_id)
    return resolved
