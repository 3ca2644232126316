"""Prediction of case folders: the Python API of `tmi predict`.

    with Predictor.open("bundle") as predictor:
        for result in predictor.stream(["case_a", "case_b"], batch=2):
            ...

Worker threads prepare cases (`tmi.runtime.serving.case_loader`): they read and check a case, resample its CT and scale
its radiomics with each fold's own scaler. The calling thread runs the engine (`tmi.runtime.inference.ensemble`): first
the text of each case, then CT and fusion of a whole batch.

A GPU computes while the next batch is prepared, and it encodes a text while the images of the same case are read. An
engine on the CPU shares its cores with the workers. Cases are therefore prepared in rounds, one case for each core,
while the engine is idle; a case that is alone in its round has its text encoded while its images are read.

Memory does not grow with the number of cases. At most two batches are held, or one round and the cases left over from
the batch before it.
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

from tmi.runtime.bundle.contents import bundled_scaler, bundled_schema
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.bundle.signing import Keys, open_trusted_bundle
from tmi.runtime.engines.registry import Engine
from tmi.runtime.engines.selection import AUTO, EngineRecord
from tmi.runtime.inference.embedding_cache import EmbeddingCache, reused_branches
from tmi.runtime.inference.ensemble import Features, encode_ct, fuse
from tmi.runtime.serving.case_loader import CaseInputs, CaseLoader, PendingCase, Prefetcher
from tmi.runtime.serving.postprocessing import to_prediction, truncated_notice
from tmi.runtime.serving.results import STAGES, CaseResult, RejectedCase
from tmi.runtime.serving.startup import open_selected_engine
from tmi.runtime.serving.text_encoding import EncodedText, TextBranch, timed_engine
from tmi.runtime.serving.timing import Stopwatch, split_overlap, sum_stages
from tmi.runtime.verification.self_test import LogCallback
from tmi.toolkit.cases.case import Case, MaskLabel, find_cases
from tmi.toolkit.clinical.rendering import require_rendering
from tmi.toolkit.clinical.schema import SCHEMA_FILE
from tmi.toolkit.compute.cpu import available_cores
from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.preprocessing.cache import PreparedCache

CaseLike = Case | Path | str
"""A case: its folder, a `Case`, or a `CaseArrays` in memory; also a folder of cases."""
MAX_READERS = 4
"""Maximum number of cases prepared in parallel; each needs the memory of its CT and of its prepared volume."""


@dataclass(kw_only=True)
class _QueuedCase:
    """A case that waits for its batch: its text is encoded, its CT is not yet."""

    inputs: CaseInputs
    text: Features
    truncated: bool
    """Whether its text was longer than the encoder's maximum length."""
    reused: tuple[str, ...]
    """Branches whose features came from the embedding cache."""
    waited: dict[str, float]
    """Seconds by stage that the engine's thread spent on the case or waited for it."""
    overlapped: dict[str, float]
    """Seconds by stage of its preparation that overlapped other work."""
    wall: float
    """Seconds of the engine's thread, measured separately from the stages."""


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
    ) -> None:
        """Build a predictor from an engine that has the bundle open; `Predictor.open` opens both.

        Args:
            bundle: the opened bundle.
            engine: an engine that has the bundle open.
            record: record of the engine.
            cache: as in `Predictor.open`.
            reuse: as in `Predictor.open`.

        Raises:
            DamagedError: the bundle's clinical text was rendered by another version.
        """
        self.bundle = bundle
        self.engine_record = record
        self._engine = engine
        self._manifest = bundle.manifest
        self._config = bundle.manifest.parsed_config()
        self.embeddings = EmbeddingCache(bundle, record) if reuse else None
        """Cache of CT and text features; None if `reuse` is off."""
        clinical = self._manifest.clinical
        if (clinical.schema, clinical.rendering) != (SCHEMA_FILE, self._config.clinical.rendering):
            raise DamagedError("bundle: its config and its clinical text disagree", fix="export the bundle again")
        if self._manifest.uses("clinical"):
            require_rendering(clinical.rendering, clinical.rendering_version, kind="bundle")
        schema = bundled_schema(bundle)
        scalers = [bundled_scaler(bundle, fold.scaler) for fold in self._manifest.folds if fold.scaler is not None]
        self._reader = CaseLoader(self._manifest, schema, scalers, cache=cache)
        self._texts = TextBranch(bundle, engine, self.embeddings)

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
            return cls(opened, opened_engine, record, cache=cache, reuse=reuse)
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
        self, cases: CaseLike | Iterable[CaseLike], *, batch: int = 1, mask_label: MaskLabel | None = None
    ) -> Iterator[CaseResult]:
        """Like `predict`, but yields results as their batches finish; few cases are in memory at a time."""
        _require_type("batch", batch, int)
        if batch < 1:
            raise UsageError(f"invalid batch size {batch}", fix="give a batch size of 1 or more")
        return self._stream(resolve_cases(cases, mask_label=mask_label), batch)

    def _stream(self, cases: Sequence[Case], batch: int) -> Iterator[CaseResult]:
        waiting: list[_QueuedCase | RejectedCase] = []
        cores, loader = available_cores(), self._reader
        # `copied_seconds` is None for an engine on the CPU: with all cores it competes with the workers.
        if self._engine.copied_seconds is None and self.engine_record.threads >= cores:
            readers = min(cores, MAX_READERS)
            round_size = -(-readers // batch) * batch  # whole batches, so that no round leaves a partial batch behind
            prefetcher = Prefetcher(
                loader.read, cases, max_ahead=round_size, in_rounds=True, readers=readers, fetch=loader.fetch
            )
        else:  # an engine with its own device, or one that leaves some cores to the workers
            prefetcher = Prefetcher(loader.read, cases, max_ahead=batch)
        with prefetcher:
            for group in prefetcher:
                for row in self._queued_cases(group):
                    waiting.append(row)
                    del row  # this name would keep the case's arrays alive during the next preparation
                    # Rejected cases at the front have no batch to wait for; later ones keep their place in the order.
                    while waiting and isinstance(waiting[0], RejectedCase):
                        yield waiting.pop(0)  # type: ignore[misc]
                    if sum(isinstance(w, _QueuedCase) for w in waiting) == batch:
                        prefetcher.computing()  # before the CT, the longest stage, so that the next batch overlaps it
                        results, waiting = self._predict_batch(waiting), []
                        yield from results
        if waiting:
            yield from self._predict_batch(waiting)

    def _queued_cases(self, group: list[PendingCase]) -> Iterator[_QueuedCase | RejectedCase]:
        """Encode the texts of a group and yield its cases. The group is emptied, so that only a row holds its arrays.

        The text of a single case is encoded while its images are read. A round is prepared completely first; its texts
        of equal length then run as one batch.
        """
        watch = Stopwatch()
        with watch.stage("waiting"):
            if len(group) > 1:
                wait([pending.inputs for pending in group])
            # Of a round, texts of rejected cases are left out; of a single case that is not yet known.
            texts = [pending.text.result() for pending in group if len(group) == 1 or _is_prepared(pending)]
        encoded = deque(self._texts.encode(texts, watch))
        with watch.stage("waiting"):
            ready = deque(pending.inputs.result() for pending in group)
        group.clear()
        # The round's waiting time is shared in proportion to each case's own preparation, the rest evenly.
        wall, waited = watch.wall, watch.seconds.pop("waiting")
        cases = sum(isinstance(inputs, CaseInputs) for inputs in ready)
        prepared_seconds = sum(inputs.wall for inputs in ready if isinstance(inputs, CaseInputs))
        shared = {name: seconds / max(1, cases) for name, seconds in watch.seconds.items()}
        share = waited / prepared_seconds if prepared_seconds > 0 else 0.0
        if cases < len(ready):
            share = min(1.0, share)  # waiting for rejected cases alone is attributed to no case
        while ready:  # popleft: no reference to a case is kept here once its row is yielded
            yield _queued_case(
                ready.popleft(), encoded, share=share, shared=shared, work=(wall - waited) / max(1, cases)
            )

    def _predict_batch(self, waiting: Sequence[_QueuedCase | RejectedCase]) -> list[CaseResult]:
        """Run one batch; rejected cases in it keep their positions."""
        watch = Stopwatch()
        rows = [w for w in waiting if isinstance(w, _QueuedCase)]
        if not rows:
            return [w for w in waiting if isinstance(w, RejectedCase)]
        with watch.stage("other"):
            cts = [r.inputs.case.ct_1DHW for r in rows]
            if len(cts) == 1:  # a view instead of a copy
                ct_B1DHW = cts[0][None]
            else:
                ct_B1DHW = np.stack(cts, out=self._reader.memory.empty((len(cts), *cts[0].shape), cts[0].dtype))
            radiomics_BFR = np.stack([r.inputs.radiomics_FR for r in rows])
            text = {name: np.concatenate([r.text[name] for r in rows]) for name in rows[0].text}
        with timed_engine(self._engine, watch, "ct"):
            ct = encode_ct(self._engine, self._manifest, ct_B1DHW, cache=self.embeddings)
        with timed_engine(self._engine, watch, "fusion"):
            logits_BFK = fuse(self._engine, self._manifest, ct, text, radiomics_BFR)
        with watch.stage("other"):
            predictions = []
            for number, row in enumerate(rows):
                longest = self._config.clinical.max_length
                predictions.append(
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
        results = iter(
            _with_timing(prediction, row, shared, wall=wall, reused=branches)
            for prediction, row, branches in zip(predictions, rows, reused, strict=True)
        )
        return [entry if isinstance(entry, RejectedCase) else next(results) for entry in waiting]


def _queued_case(
    inputs: CaseInputs | RejectedCase,
    texts: deque[EncodedText],
    *,
    share: float,
    shared: Mapping[str, float],
    work: float,
) -> _QueuedCase | RejectedCase:
    """Combine the inputs and the encoded text of one case; a rejected case is returned as it is.

    Args:
        inputs: inputs of the case.
        texts: encoded texts of the cases that were not rejected; the first one belongs to this case and is removed.
        share: fraction of its preparation that was waited for.
        shared: seconds by stage of the other work for it.
        work: seconds of that work, measured separately.
    """
    if isinstance(inputs, RejectedCase):
        return inputs
    text, waited = texts.popleft(), share * inputs.wall
    visible, hidden = split_overlap(inputs.seconds, wall=inputs.wall, waited=waited)
    return _QueuedCase(
        inputs=inputs,
        text=text.features,
        truncated=text.truncated,
        reused=text.reused,
        waited=sum_stages(visible, shared),
        overlapped=hidden,
        wall=waited + work,
    )


def _is_prepared(pending: PendingCase) -> bool:
    """Whether a finished preparation did not end in a rejection."""
    return isinstance(pending.inputs.result(), CaseInputs)


def _with_timing(
    result: CaseResult, row: _QueuedCase, shared: Mapping[str, float], *, wall: float, reused: tuple[str, ...]
) -> CaseResult:
    """Add the seconds of the case itself and its part of the batch to a prediction."""
    if isinstance(result, RejectedCase):
        return result
    # `STAGES` with zeros in between: every prediction lists all stages, in pipeline order.
    seconds = sum_stages(row.waited, dict.fromkeys(STAGES, 0.0), shared)
    return replace(
        result,
        seconds={**seconds, "total": row.wall + wall},
        overlapped=row.overlapped,
        reused=(*reused, *row.reused),
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
