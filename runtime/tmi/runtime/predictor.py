"""From case folders to answers: the Python API of `tmi predict`.

    with Predictor.open("bundle") as predictor:
        for answer in predictor.stream(["case_a", "case_b"], batch=2):
            ...

The road of one batch: each case is read, checked and prepared (`tmi.toolkit.prepare`, as in training);
its radiomics are scaled by each fold's own scaler and its text is tokenised by each text encoder's own tokenizer; then
`tmi.runtime.ensemble` runs the graphs. At most one batch of cases is in memory at a time, whatever their number; on a
GPU engine two, because the next one is prepared while this one computes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from tmi.runtime.engine import Engine, engine_spec
from tmi.runtime.engine_choice import AUTO, EngineRecord
from tmi.runtime.engine_opening import open_chosen
from tmi.runtime.ensemble import encode_ct, encode_text, fuse, probabilities, softmax, spread
from tmi.runtime.first_opening import Tell
from tmi.runtime.notices import case_notices
from tmi.runtime.prediction import STAGES, Answer, FoldAnswer, Notice, Prediction, Refusal
from tmi.runtime.stopwatch import Stopwatch, waterfall
from tmi.toolkit.bundle import Bundle, open_bundle
from tmi.toolkit.case import Case, find_cases
from tmi.toolkit.clinical_schema import SCHEMA_FILE, stored_schema
from tmi.toolkit.clinical_text import require_rendering
from tmi.toolkit.errors import DamagedError, InputRefusedError, UnavailableError, UsageError
from tmi.toolkit.prepare import PreparedCase, prepare_case
from tmi.toolkit.prepared_cache import PreparedCache
from tmi.toolkit.scaling import RadiomicsScaler
from tmi.toolkit.tokenizer import Encoded, Tokenizer

CaseLike = Case | Path | str


@dataclass(kw_only=True)
class _Ready:
    """A case that waits for its batch."""

    case: PreparedCase
    radiomics_FR: Float32[NDArray[np.float32], "F R"]
    notices: tuple[Notice, ...]
    seconds: dict[str, float]
    wall: float
    """Seconds from the first byte read until it was ready."""


class Predictor:
    """An opened bundle on an opened engine. Use as a context manager, or call `close`."""

    def __init__(
        self, bundle: Bundle, engine: Engine, record: EngineRecord, *, cache: PreparedCache | None = None
    ) -> None:
        """Take a bundle and an engine that has it open; `Predictor.open` makes both.

        Raises:
            DamagedError: the bundle's clinical text is not that of this version.
        """
        self.bundle = bundle
        self.engine_record = record
        self._engine = engine
        self._manifest = bundle.manifest
        self._config = bundle.manifest.settings()
        self._cache = cache
        clinical = self._manifest.clinical
        if (clinical.schema, clinical.rendering) != (SCHEMA_FILE, self._config.clinical.rendering):
            raise DamagedError("bundle: its config and its clinical text disagree", fix="export the bundle again")
        require_rendering(clinical.rendering, clinical.rendering_version, kind="bundle")
        self._schema = stored_schema(bundle.folder, kind="bundle")
        self._scalers = [RadiomicsScaler.load(bundle.folder / fold.scaler) for fold in self._manifest.folds]
        self._tokenizer_of = _tokenizer_files(bundle)
        self._tokenizers = {
            name: Tokenizer.load(bundle.folder / name) for name in dict.fromkeys(self._tokenizer_of.values())
        }

    @classmethod
    def open(
        cls,
        bundle: Path | str,
        *,
        engine: str = AUTO,
        precision: str = "auto",
        threads: int | None = None,
        cache: PreparedCache | None = None,
        key: Path | None = None,
        verify: bool = True,
        tell: Tell = lambda line: None,
    ) -> Self:
        """Open a bundle, after comparing every byte of it with its manifest.

        The first time that this machine opens it with an engine, a golden case must be answered as at the export
        (`tmi.runtime.first_opening`).

        Args:
            bundle: a bundle's folder.
            engine: `auto` or a name in `tmi.runtime.engine.ENGINES`; what was taken is in `engine_record`.
            precision: `auto`, or `bf16` or `fp32`: only an engine that computes in that.
            threads: threads of the engine; None takes all cores.
            cache: keeps what is made from the images of a case for the next time; None keeps nothing.
            key: public key (PEM) that must have signed the bundle; None asks for no signature.
            verify: False skips the check at the first opening; `engine_record` says so.
            tell: told one line about a first opening.

        Raises:
            UsageError: no such bundle or engine.
            DamagedError: the bundle is damaged, was edited, is not signed by the key, or the engine cannot load it.
            UnavailableError: the engine is not installed, or the bundle has no graphs for it.
            ParityError: at its first opening here, it does not answer like the validated model.
        """
        opened = open_bundle(Path(bundle))
        if key is not None:
            from tmi.runtime.signing import check_signature  # its packages are slow to import, and an extra

            check_signature(opened.folder, key)
        running, record = open_chosen(engine, opened, precision=precision, threads=threads, verify=verify, tell=tell)
        try:
            return cls(opened, running, record, cache=cache)
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
    ) -> list[Answer]:
        """Answers for all cases, in the order given; a bad case is a `Refusal` and stops no other.

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
    ) -> Iterator[Answer]:
        """As `predict`, one answer after the other as its batch is done; holds one batch in memory."""
        if batch < 1:
            raise UsageError(f"a batch of {batch} cases", fix="give a batch of 1 or more")
        return self._stream(resolve_cases(cases, mask_label=mask_label), batch)

    def _stream(self, cases: Sequence[Case], batch: int) -> Iterator[Answer]:
        waiting: list[_Ready | Refusal] = []
        for ready in self._prepared(cases, batch):
            waiting.append(ready)
            while waiting and isinstance(waiting[0], Refusal):
                yield waiting.pop(0)  # type: ignore[misc]
            if sum(isinstance(w, _Ready) for w in waiting) == batch:
                yield from self._answer(waiting)
                waiting = []
        if waiting:
            yield from self._answer(waiting)

    def _prepared(self, cases: Sequence[Case], batch: int) -> Iterator[_Ready | Refusal]:
        """Each case, ready or refused, in order. While a GPU computes one batch, a thread prepares the next."""
        if not engine_spec(self._engine.name).gpu:
            yield from map(self._ready, cases)  # the engine has every core already
            return
        worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare")
        ahead: deque[Future[_Ready | Refusal]] = deque()
        try:
            for case in cases:
                ahead.append(worker.submit(self._ready, case))
                if len(ahead) > batch:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            worker.shutdown(cancel_futures=True)

    def _ready(self, case: Case) -> _Ready | Refusal:
        """Read, check and prepare one case, or say why not."""
        watch = Stopwatch()
        try:
            prepared = prepare_case(case, self._config, self._schema, cache=self._cache)
        except InputRefusedError as error:
            return Refusal(case_id=case.case_id, code=error.code, what=error.what, fix=error.fix)
        except UnavailableError as error:
            # This one case needs what is not installed (say, radiomics extraction); the others do not.
            return Refusal(case_id=case.case_id, code="unavailable", what=error.what, fix=error.fix)
        watch.seconds.update(prepared.seconds)
        with watch.stage("radiomics"):
            scaled = [scaler.transform(prepared.radiomics_F[None]) for scaler in self._scalers]
            radiomics_FR = np.concatenate([s.values_NF for s in scaled])
            imputed_R: NDArray[np.bool_] = np.logical_or.reduce([s.imputed_NF[0] for s in scaled])
            clipped_R: NDArray[np.bool_] = np.logical_or.reduce([s.clipped_NF[0] for s in scaled])
        return _Ready(
            case=prepared,
            radiomics_FR=radiomics_FR,
            notices=case_notices(prepared, imputed_R=imputed_R, clipped_R=clipped_R, manifest=self._manifest),
            seconds=watch.seconds,
            wall=watch.wall,
        )

    def _answer(self, waiting: Sequence[_Ready | Refusal]) -> Iterator[Answer]:
        """Run one batch; refusals among its cases keep their places."""
        watch = Stopwatch()
        ready = [w for w in waiting if isinstance(w, _Ready)]
        with watch.stage("tokenise"):
            encoded = self._tokenise([r.case.text for r in ready])
        with watch.stage("other"):
            ct_B1DHW = np.stack([r.case.ct_1DHW for r in ready])
            radiomics_BFR = np.stack([r.radiomics_FR for r in ready])
        with watch.stage("ct"):
            ct = encode_ct(self._engine, self._manifest, ct_B1DHW)
        with watch.stage("text"):
            text = encode_text(self._engine, self._manifest, encoded)
        with watch.stage("fusion"):
            logits_BFK = fuse(self._engine, self._manifest, ct, text, radiomics_BFR)
        shared = {name: seconds / len(ready) for name, seconds in watch.seconds.items()}
        wall = watch.wall / len(ready)
        row = 0
        for one in waiting:
            if isinstance(one, Refusal):
                yield one
                continue
            cut = any(texts.truncated_B[row] for texts in encoded.values())
            seconds = waterfall(STAGES, one.seconds, shared, total=one.wall + wall)
            yield self._judge(one, logits_BFK[row : row + 1], seconds=seconds, cut=cut)
            row += 1

    def _tokenise(self, texts: Sequence[str]) -> dict[str, Encoded]:
        """Tokens by name of the text graph; each distinct tokenizer works once."""
        clinical = self._config.clinical
        by_file = {
            name: tokenizer.encode(texts, max_length=clinical.max_length, pad_to_max=clinical.pad_to_max)
            for name, tokenizer in self._tokenizers.items()
        }
        return {graph: by_file[name] for graph, name in self._tokenizer_of.items()}

    def _judge(
        self,
        one: _Ready,
        logits_1FK: Float32[NDArray[np.float32], "1 F K"],
        *,
        seconds: Mapping[str, float],
        cut: bool,
    ) -> Answer:
        """One case's logits as an answer."""
        manifest, case_id = self._manifest, one.case.case_id
        if not np.isfinite(logits_1FK).all():
            return Refusal(
                case_id=case_id,
                code="answer-not-finite",
                what=f"the network's answer on engine {self._engine.name} is not a finite number",
                fix="look at the case with `tmi check`, and predict it with another --engine",
            )
        mean_K = probabilities(logits_1FK)[0]
        is_positive = bool(mean_K[manifest.positive] >= manifest.threshold)
        notices = one.notices
        if cut:
            longest = self._config.clinical.max_length
            notices = (
                *notices,
                Notice(code="text-truncated", message=f"the clinical text was cut to its first {longest} tokens"),
            )
        return Prediction(
            case_id=case_id,
            probability=self._by_class(mean_K),
            folds=tuple(
                FoldAnswer(fold=fold.fold, probability=self._by_class(p_K))
                for fold, p_K in zip(manifest.folds, softmax(logits_1FK)[0], strict=True)
            ),
            spread=float(spread(logits_1FK, manifest.positive)[0]),
            decision=manifest.classes[manifest.positive if is_positive else 1 - manifest.positive],
            warnings=notices,
            engine=self._engine.name,
            bundle=self.bundle.digest,
            seconds=seconds,
        )

    def _by_class(self, p_K: NDArray[np.float64]) -> dict[str, float]:
        return {name: float(p) for name, p in zip(self._manifest.classes, p_K, strict=True)}


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


def _tokenizer_files(bundle: Bundle) -> dict[str, str]:
    """Text graph -> its tokenizer file."""
    files: dict[str, str] = {}
    for fold in bundle.manifest.folds:
        spec = bundle.manifest.graph(fold.text)
        if spec.tokenizer is None:
            raise DamagedError(f"bundle: graph {spec.name} names no tokenizer", fix="export the bundle again")
        files[spec.name] = spec.tokenizer
    return files
