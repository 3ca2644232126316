"""Prediction pipeline of a bundle: a batch of cases in, a result for each case out.

    prepare -> scale -> tokenise -> encode text, encode CT -> fuse -> postprocess

Each stage is a method that is a function of its arguments. The pipeline starts no thread, measures no time, and decides
neither the order of cases nor the size of a batch: its callers do (`tmi.runtime.serving.predictor`). It keeps nothing
between calls but what the bundle holds, so that different callers can share it.

A bad case becomes a `RejectedCase`; the other cases of its batch have the same results as without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32
from numpy.typing import NDArray

from tmi.runtime.bundle.contents import bundled_scaler, bundled_schema
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.registry import Engine
from tmi.runtime.inference.embedding_cache import EmbeddingCache
from tmi.runtime.inference.ensemble import EncodedBranch, Features, encode_ct, fuse
from tmi.runtime.serving.input_warnings import case_notices
from tmi.runtime.serving.postprocessing import to_prediction, truncated_notice
from tmi.runtime.serving.results import CaseResult, RejectedCase
from tmi.runtime.serving.text_encoding import CaseTokens, EncodedText, TextBranch
from tmi.runtime.serving.trust import FoldMeasurement, TrustAssessor
from tmi.toolkit.cases.case import Case, reading
from tmi.toolkit.clinical.rendering import require_rendering
from tmi.toolkit.clinical.schema import SCHEMA_FILE
from tmi.toolkit.compute.buffer_pool import ArrayAllocator
from tmi.toolkit.config.schema import N_RADIOMICS
from tmi.toolkit.errors import DamagedError, InputRejectedError, UnavailableError
from tmi.toolkit.issues.issue import Issue
from tmi.toolkit.preprocessing.cache import PreparedCache
from tmi.toolkit.preprocessing.pipeline import PreparedCase, prepare_case
from tmi.toolkit.trust.conformal import COVERAGE, require_coverage


@dataclass(frozen=True, kw_only=True)
class CaseInputs:
    """The inputs of one case, ready for the engine."""

    case: PreparedCase
    """CT, text and unscaled radiomics."""
    radiomics_FR: Float32[NDArray[np.float32], "F R"]
    """Radiomics scaled by each fold's own scaler; no rows if the bundle does not use radiomics."""
    notices: tuple[Issue, ...]
    """Warnings and notes about the input, to be reported with the prediction."""
    clipped_FR: Bool[NDArray[np.bool_], "F R"]
    """Features outside each fold's training range."""
    volume_S: Float[NDArray[np.float64], "S"] | None = None
    """Statistics of the prepared CT; None if trust is not assessed."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Inputs of some cases, stacked for the engine; B rows in the order of `cases`."""

    cases: tuple[CaseInputs, ...]
    """The cases."""
    texts: tuple[EncodedText, ...]
    """The encoded text of each case."""
    ct_B1DHW: Float32[NDArray[np.float32], "B 1 D H W"]
    """CTs; no voxel if the bundle does not use them."""
    radiomics_BFR: Float32[NDArray[np.float32], "B F R"]
    """Scaled radiomics."""
    text: Features
    """Text features by graph, [B, C]; empty if the bundle does not use the clinical record."""


class InferencePipeline:
    """The stages of a prediction with one bundle on one engine.

    Args:
        bundle: the opened bundle.
        engine: an engine that has the bundle open.
        cache: disk cache of prepared images; None disables it.
        embeddings: cache of CT and text features; None disables it.
        empty: allocates the large arrays.
        trust_level: largest joint p-value at which a case is not trusted; None: the manifest's.
        coverage: coverage of the prediction sets.

    Raises:
        DamagedError: the bundle's clinical text was rendered by another version, or its trust statistics are malformed.
        UsageError: a trust level for a bundle without statistics, or one that is no probability.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        *,
        cache: PreparedCache | None = None,
        embeddings: EmbeddingCache | None = None,
        empty: ArrayAllocator = np.empty,
        trust_level: float | None = None,
        coverage: float = COVERAGE,
    ) -> None:
        self._manifest = bundle.manifest
        self._config = bundle.manifest.config
        clinical = self._manifest.clinical
        if (clinical.schema, clinical.rendering) != (SCHEMA_FILE, self._config.clinical.rendering):
            raise DamagedError("bundle: its config and its clinical text disagree", fix="export the bundle again")
        if self._manifest.uses("clinical"):
            require_rendering(clinical.rendering, clinical.rendering_version, kind="bundle")
        self._bundle, self._engine = bundle, engine
        self._cache, self._embeddings, self._empty = cache, embeddings, empty
        self._schema = bundled_schema(bundle)
        self._scalers = [bundled_scaler(bundle, f.scaler) for f in self._manifest.folds if f.scaler is not None]
        self._texts = TextBranch(bundle, engine, embeddings)
        self._trust = TrustAssessor.of_bundle(bundle, level=trust_level)
        self._coverage = require_coverage(coverage)

    def __repr__(self) -> str:
        return f"InferencePipeline({self._manifest.preset}, {len(self._manifest.folds)} folds, {self._engine.name})"

    def run(self, batch: Sequence[Case]) -> list[CaseResult]:
        """Predict the cases of one batch; the results have no timing.

        Args:
            batch: the cases; they are computed together.

        Returns:
            One result for each case, in the order given.
        """
        prepared = [self.prepare(case) for case in batch]
        inputs = [self.scale(case) for case in prepared if isinstance(case, PreparedCase)]
        predictions = iter(self._infer(inputs) if inputs else [])
        return [case if isinstance(case, RejectedCase) else next(predictions) for case in prepared]

    def _infer(self, inputs: Sequence[CaseInputs]) -> list[CaseResult]:
        """Run the stages behind the preparation."""
        texts = [case.case.text if self._manifest.uses("clinical") else None for case in inputs]
        batch = self.collate(inputs, self.encode_text(self.tokenise(texts)))
        ct = self.encode_ct(batch)
        return self.postprocess(batch, ct, self.fuse(batch, ct))

    def prepare(
        self, case: Case, on_text_ready: Callable[[str], None] = lambda text: None
    ) -> PreparedCase | RejectedCase:
        """Read, check and prepare one case.

        Args:
            case: the case.
            on_text_ready: called with the clinical text before any image is read.

        Returns:
            The prepared case, or the reason why it is rejected. A bad case never raises.
        """
        try:
            with reading(case.case_id):
                return prepare_case(
                    case,
                    self._config,
                    self._schema,
                    modalities=self._manifest.modalities,
                    cache=self._cache,
                    on_text_ready=on_text_ready,
                    empty=self._empty,
                )
        except (InputRejectedError, UnavailableError) as error:
            # A missing package (for example for radiomics extraction) concerns this case alone, so the batch continues.
            return RejectedCase.of(error, case.case_id)

    def scale(self, prepared: PreparedCase) -> CaseInputs:
        """Scale the radiomics of a case with each fold's own scaler, and collect the notices about its input."""
        scaled = [scaler.transform(prepared.radiomics_F[None]) for scaler in self._scalers]
        # Without scalers both lists are empty: these rows keep concatenate and reduce defined.
        none_R = np.zeros(N_RADIOMICS, np.bool_)
        clipped = [s.clipped_NF for s in scaled]
        return CaseInputs(
            case=prepared,
            radiomics_FR=np.concatenate([np.zeros((0, N_RADIOMICS), np.float32), *(s.values_NF for s in scaled)]),
            notices=case_notices(
                prepared,
                imputed_R=np.logical_or.reduce([none_R, *(s.imputed_NF[0] for s in scaled)]),
                clipped_R=np.logical_or.reduce([none_R, *(s.clipped_NF[0] for s in scaled)]),
                modalities=self._manifest.modalities,
                synthetic=self._manifest.synthetic,
                system=self._config.system.name,
            ),
            clipped_FR=np.concatenate([np.zeros((0, N_RADIOMICS), np.bool_), *clipped]),
            volume_S=self._trust.measure_volume(prepared),
        )

    def tokenise(self, texts: Sequence[str | None]) -> list[CaseTokens | None]:
        """Tokens of each text; None for a case without text."""
        return self._texts.tokenise(texts)

    def encode_text(self, tokens: Sequence[CaseTokens | None]) -> list[EncodedText]:
        """Features of each text; texts of equal padded length run as one batch."""
        return self._texts.encode(tokens)

    def collate(self, cases: Sequence[CaseInputs], texts: Sequence[EncodedText]) -> Batch:
        """Stack the inputs of cases, which have one encoded text each."""
        cts = [case.case.ct_1DHW for case in cases]
        if len(cts) == 1:  # a view instead of a copy
            ct_B1DHW = cts[0][None]
        else:
            ct_B1DHW = np.stack(cts, out=self._empty((len(cts), *cts[0].shape), cts[0].dtype))
        return Batch(
            cases=tuple(cases),
            texts=tuple(texts),
            ct_B1DHW=ct_B1DHW,
            radiomics_BFR=np.stack([case.radiomics_FR for case in cases]),
            text={name: np.concatenate([text.features[name] for text in texts]) for name in texts[0].features},
        )

    def encode_ct(self, batch: Batch) -> EncodedBranch:
        """Features of the CTs."""
        return encode_ct(self._engine, self._manifest, batch.ct_B1DHW, cache=self._embeddings)

    def fuse(self, batch: Batch, ct: EncodedBranch) -> Float32[NDArray[np.float32], "B F K"]:
        """Logits of every fold."""
        return fuse(self._engine, self._manifest, ct.features, batch.text, batch.radiomics_BFR)

    def postprocess(
        self, batch: Batch, ct: EncodedBranch, logits_BFK: Float32[NDArray[np.float32], "B F K"]
    ) -> list[CaseResult]:
        """Predictions without timing; a case is rejected if one of its logits is not finite."""
        longest = self._config.clinical.max_length
        return [
            to_prediction(
                case.case.case_id,
                logits_BFK[row : row + 1],
                manifest=self._manifest,
                digest=self._bundle.digest,
                engine=self._engine.name,
                notices=case.notices + ((truncated_notice(longest, case.case.case_id),) if text.truncated else ()),
                trust=self._trust.assess(
                    case.case, self._measurements(case, row, ct.features, batch.text), volume_S=case.volume_S
                ),
                prediction_set=self._trust.prediction_set(
                    logits_BFK[row], classes=self._manifest.classes, coverage=self._coverage
                ),
                reused=(*(("ct",) if any(ct.reused_B[row : row + 1]) else ()), *(("text",) if text.reused else ())),
            )
            for row, (case, text) in enumerate(zip(batch.cases, batch.texts, strict=True))
        ]

    def _measurements(self, case: CaseInputs, row: int, ct: Features, text: Features) -> list[FoldMeasurement]:
        """What each fold computed of the case in a row of the features by graph."""
        return [
            FoldMeasurement(
                ct_C=None if fold.ct is None else ct[fold.ct][row],
                text_C=None if fold.text is None else text[fold.text][row],
                radiomics_R=None if fold.scaler is None else case.radiomics_FR[index],
                clipped_R=None if fold.scaler is None else case.clipped_FR[index],
            )
            for index, fold in enumerate(self._manifest.folds)
        ]
