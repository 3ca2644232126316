"""Explain one case with the models of a run or bundle: maps and attributions of every fold, and their mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import perf_counter

import numpy as np
import torch
from jaxtyping import Float

from tmi.runtime.explanation.inputs import EncodedCase, FoldInputs, fold_inputs
from tmi.runtime.explanation.insertion_deletion import PerturbationCurves, curves
from tmi.runtime.explanation.integrated_gradients import (
    Attribution,
    radiomics_attribution,
    sum_by_field,
    text_attribution,
)
from tmi.runtime.explanation.model_source import ModelSource
from tmi.runtime.explanation.parameter_randomization import RandomizationStep, randomization_test
from tmi.runtime.explanation.results import REPORT_FIELD, Explanation, FoldExplanation, mean_fields
from tmi.runtime.explanation.tcaf_attention import RingAttention, ring_attention
from tmi.runtime.explanation.xgradcam import cams_of, combined_map, run_recorded, stage_cams, unit_range
from tmi.runtime.serving.input_warnings import case_notices
from tmi.runtime.serving.postprocessing import Decision, decide, truncated_notice
from tmi.runtime.serving.trust import FoldMeasurement
from tmi.toolkit.cases.case import Case
from tmi.toolkit.clinical.record import read_clinical
from tmi.toolkit.clinical.rendering import field_spans, sentences
from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.issues.issue import Issue
from tmi.toolkit.models.registry import active_modalities
from tmi.toolkit.models.tmi_clnet.fusion import FusionOutput
from tmi.toolkit.models.tmi_clnet.model import TmiClnet
from tmi.toolkit.preprocessing.pipeline import PreparedCase
from tmi.toolkit.radiomics.scaler import Scaled
from tmi.toolkit.trust.p_values import Trust

LogCallback = Callable[[str], None]
"""Called with a short text when a stage starts."""
SMALL_CT_VOXELS = 2**20
"""Largest CT input that is explained on one thread by default."""
STAGES = ("layer1", "layer2", "layer3", "layer4")
"""The four residual stages of the CT encoder."""


@dataclass(frozen=True, kw_only=True)
class _FoldParts:
    """Explanation of one fold before the explained class is known."""

    fold: int
    """Number of the fold."""
    probability_K: Float[np.ndarray, " K"]
    """Probabilities of the classes."""
    scaled: Scaled
    """Scaled features, with those that were imputed or clipped."""
    measured: FoldMeasurement
    """What trust is assessed from."""
    truncated: bool
    """Whether the text was longer than the encoder's maximum length."""
    cams: dict[int, list[torch.Tensor]]
    """Class -> CAM of each stage, for the classes that may be explained."""
    radiomics: Attribution
    """Attributions of the features."""
    text: Attribution
    """Attributions of the tokens."""
    fields: dict[str | None, float | None]
    """Field -> sum of its tokens' attributions."""
    attention: tuple[RingAttention, ...]
    """Metrics of the TCAF's attention."""


class Explainer:
    """Explains cases with some folds of a source.

    Args:
        source: run or bundle.
        folds: fold numbers of the source.
        target: class to explain; None: for each case the class that these folds predict.
        log: called with a short text at every stage.
        trust_level: largest joint p-value at which a case is not trusted; None: the source's.

    Raises:
        UsageError: a trust level for a source without statistics, or one that is no probability.
    """

    def __init__(
        self,
        source: ModelSource,
        folds: tuple[int, ...],
        *,
        target: str | None = None,
        log: LogCallback = lambda words: None,
        trust_level: float | None = None,
    ) -> None:
        self.source = source
        self.folds = folds
        self._target = target
        self._log = log
        self._trust = source.trust.select(folds, level=trust_level)

    def explain(self, case: Case, prepared: PreparedCase) -> Explanation:
        """Compute maps and attributions.

        Args:
            case: the case, whose clinical record is split into sentences.
            prepared: the case, preprocessed with the source's config and schema.

        Raises:
            InputRejectedError: `answer-not-finite`, or the record was changed in the meantime and cannot be read.
        """
        source, seconds = self.source, {"answer": 0.0, "map": 0.0, "radiomics": 0.0, "clinical": 0.0}
        record = read_clinical(case, source.schema)
        spans = field_spans(sentences(record, source.schema, source.config.clinical.rendering))
        parts = [self._fold(fold, prepared, case.case_id, spans, seconds) for fold in self.folds]
        mean_K = np.mean([fold.probability_K for fold in parts], axis=0)
        trust = self._trust.assess(
            prepared, [fold.measured for fold in parts], volume_S=self._trust.measure_volume(prepared)
        )
        decided = self._decide(mean_K, self._notices(prepared, parts), trust, prepared.case_id)
        target = source.classes.index(decided.predicted if self._target is None else self._target)
        start = perf_counter()
        folds = tuple(self._explanation(fold, target) for fold in parts)
        seconds["map"] += perf_counter() - start
        mean_map = torch.from_numpy(np.mean([f.map_DHW for f in folds], axis=0))
        return Explanation(
            case_id=case.case_id,
            target=source.classes[target],
            decision=decided.decision,
            reasons=decided.reasons,
            trust=trust,
            probability=self._by_class(mean_K),
            folds=folds,
            map_DHW=unit_range(mean_map).numpy(),
            radiomics_R=np.mean([f.radiomics_R for f in folds], axis=0),
            fields=mean_fields(folds),
            notices=decided.notices,
            seconds=seconds,
        )

    def curves(self, explanation: Explanation, prepared: PreparedCase, *, steps: int) -> PerturbationCurves:
        """Insertion and deletion curves of the explanation's map; p is the mean over the explained folds."""
        self._log("insertion and deletion")
        target = self.source.classes.index(explanation.target)
        empty = self.source.config.ct.scale_to[0]
        by_fold: list[PerturbationCurves] = []
        # From the last fold, which may still be in memory, to the first, which the randomization test uses next.
        for fold in reversed(self.folds):
            model = self.source.load(fold)
            inputs = fold_inputs(prepared, model, self.source.config)
            with torch.inference_mode():
                text = model.fused.encode_text(inputs.input_ids, inputs.attention_mask)

            @torch.inference_mode()
            def predict(
                ct_DHW: Float[np.ndarray, "D H W"],
                network: TmiClnet = model.fused,
                inputs: FoldInputs = inputs,
                text: torch.Tensor = text,
            ) -> float:
                # Defaults bind this fold's values; radiomics and text stay fixed, so only the CT is encoded again.
                features = network.encode_ct(torch.from_numpy(ct_DHW[None, None]))
                return float(softmax(network.fuse(features, text, inputs.radiomics).logits_BK[0].numpy())[target])

            fold_curves = curves(prepared.ct_1DHW[0], explanation.map_DHW, predict, steps=steps, empty=empty)
            by_fold.insert(0, fold_curves)
        return PerturbationCurves(
            parts=by_fold[0].parts,
            deletion=tuple(float(v) for v in np.mean([c.deletion for c in by_fold], axis=0)),
            insertion=tuple(float(v) for v in np.mean([c.insertion for c in by_fold], axis=0)),
        )

    def randomization_test(self, explanation: Explanation, prepared: PreparedCase) -> tuple[RandomizationStep, ...]:
        """Parameter randomization test, on the first explained fold."""
        self._log("sanity check")
        model = self.source.load(self.folds[0])
        inputs = fold_inputs(prepared, model, self.source.config)
        target = self.source.classes.index(explanation.target)
        text = encode_text(model.fused, inputs)
        return randomization_test(
            model.fused,
            lambda: ct_map(model.fused, inputs, text, target, self.source.config.ct.shape_DHW),
            explanation.folds[0].map_DHW,
        )

    def _fold(
        self,
        fold: int,
        prepared: PreparedCase,
        case_id: str,
        spans: list[tuple[str | None, int, int]],
        seconds: dict[str, float],
    ) -> _FoldParts:
        """Prediction, CAMs and attributions of one fold, whose model is loaded once and whose CT is encoded once."""
        config, positive = self.source.config, self.source.positive
        marks = [perf_counter()]
        self._log(f"fold {fold}: prediction")
        model = self.source.load(fold)
        network, inputs = model.fused, fold_inputs(prepared, model, config)
        run = _run_network(network, inputs)
        probability_K = softmax(run.fused.logits_BK.detach()[0].numpy())
        if not np.isfinite(probability_K).all():
            raise InputRejectedError(
                "the network's output is not a finite number",
                fix="check the case with `tmi check`",
                code="answer-not-finite",
                case_id=case_id,
            )
        marks.append(perf_counter())
        self._log(f"fold {fold}: map")
        cams = run.cams(self._explainable(probability_K))
        marks.append(perf_counter())
        self._log(f"fold {fold}: radiomics")
        radiomics = radiomics_attribution(network, inputs, run.encoded, positive)
        marks.append(perf_counter())
        self._log(f"fold {fold}: clinical text")
        offsets = model.tokenizer.offsets(prepared.text, max_length=config.clinical.max_length)
        text = text_attribution(network, inputs, run.encoded, positive, offsets)
        marks.append(perf_counter())
        for name, elapsed in zip(("answer", "map", "radiomics", "clinical"), np.diff(marks), strict=True):
            seconds[name] += float(elapsed)
        fused = run.fused
        scaled = model.scaler.transform(prepared.radiomics_F[None])
        return _FoldParts(
            fold=fold,
            probability_K=probability_K,
            scaled=scaled,
            measured=FoldMeasurement(
                ct_C=run.encoded.ct_features[0].numpy(),
                text_C=run.encoded.text_features[0].numpy(),
                radiomics_R=scaled.values_NF[0],
                clipped_R=scaled.clipped_NF[0],
            ),
            truncated=inputs.truncated,
            cams=cams,
            radiomics=radiomics,
            text=text,
            fields=sum_by_field(text.values_N, offsets, spans),
            attention=ring_attention(network.fusion.tcaf, (fused.clinical_BC, fused.radiomics_BC, fused.image_BC)),
        )

    def _notices(self, prepared: PreparedCase, parts: Sequence[_FoldParts]) -> tuple[Issue, ...]:
        """Warnings and notes of the case, as those of a prediction."""
        source = self.source
        notices = case_notices(
            prepared,
            imputed_R=np.logical_or.reduce([fold.scaled.imputed_NF[0] for fold in parts]),
            clipped_R=np.logical_or.reduce([fold.scaled.clipped_NF[0] for fold in parts]),
            modalities=active_modalities(source.config),
            synthetic=source.synthetic,
            system=source.config.system.name,
        )
        longest = source.config.clinical.max_length
        truncated = any(fold.truncated for fold in parts)
        return (*notices, truncated_notice(longest, prepared.case_id)) if truncated else notices

    def _decide(
        self, probability_K: Float[np.ndarray, " K"], notices: tuple[Issue, ...], trust: Trust | None, case_id: str
    ) -> Decision:
        source = self.source
        return decide(
            float(probability_K[source.positive]),
            notices,
            trust,
            case_id=case_id,
            threshold=source.threshold,
            classes=source.classes,
            positive=source.positive,
            withholds=self._trust.assesses,
        )

    def _explainable(self, probability_K: Float[np.ndarray, " K"]) -> tuple[int, ...]:
        """Classes that may be explained: all while folds are missing whose mean decides."""
        if self._target is not None:
            return (self.source.classes.index(self._target),)
        if len(self.folds) > 1:
            return tuple(range(len(self.source.classes)))
        return (self.source.classes.index(self._decide(probability_K, (), None, "").predicted),)

    def _explanation(self, parts: _FoldParts, target: int) -> FoldExplanation:
        return FoldExplanation(
            fold=parts.fold,
            probability=self._by_class(parts.probability_K),
            map_DHW=combined_map(parts.cams[target], self.source.config.ct.shape_DHW).numpy(),
            radiomics_R=parts.radiomics.values_N,
            fields={REPORT_FIELD if name is None else name: value for name, value in parts.fields.items()},
            completeness={"radiomics": _completeness(parts.radiomics), "clinical": _completeness(parts.text)},
            attention=parts.attention,
        )

    def _by_class(self, p_K: Float[np.ndarray, " K"]) -> dict[str, float]:
        return {name: float(p) for name, p in zip(self.source.classes, p_K, strict=True)}


@dataclass(frozen=True, kw_only=True)
class _NetworkRun:
    """One run of a fold's network on a case, with the graph from the first stage's output on."""

    encoded: EncodedCase
    """Features of both encoders, without a graph."""
    fused: FusionOutput
    """Logits and aligned features."""
    stages: list[torch.Tensor]
    """Outputs of the stages."""

    def cams(self, classes: tuple[int, ...]) -> dict[int, list[torch.Tensor]]:
        """Class -> CAM of each stage; the graph is freed."""
        logits_K = self.fused.logits_BK[0]
        return {k: cams_of(logits_K[k], self.stages, keep_graph=k != classes[-1]) for k in classes}


def _run_network(network: TmiClnet, inputs: FoldInputs) -> _NetworkRun:
    text = encode_text(network, inputs)
    ct: list[torch.Tensor] = []
    fused: list[FusionOutput] = []

    def forward() -> torch.Tensor:
        ct.append(network.encode_ct(inputs.ct))
        fused.append(network.fuse(ct[0], text, inputs.radiomics))
        return fused[0].logits_BK

    _, outputs = run_recorded(forward, _stages(network))
    encoded = EncodedCase(ct_features=ct[0].detach(), text_features=text)
    return _NetworkRun(encoded=encoded, fused=fused[0], stages=outputs)


def _stages(network: TmiClnet) -> list[torch.nn.Module]:
    return [getattr(network.ct_encoder.backbone, name) for name in STAGES]


def ct_map(
    network: TmiClnet, inputs: FoldInputs, text_features: torch.Tensor, target: int, shape_DHW: tuple[int, int, int]
) -> Float[np.ndarray, "D H W"]:
    """XGrad-CAM of one fold on the input grid, in [0, 1]; radiomics and text stay fixed."""

    def forward() -> torch.Tensor:
        features = network.encode_ct(inputs.ct)
        logit: torch.Tensor = network.fuse(features, text_features, inputs.radiomics).logits_BK[0, target]
        return logit

    _, cams = stage_cams(forward, _stages(network))
    map_DHW: Float[np.ndarray, "D H W"] = combined_map(cams, shape_DHW).numpy()
    return map_DHW


def encode_text(network: TmiClnet, inputs: FoldInputs) -> torch.Tensor:
    """Text features, without gradients."""
    with torch.no_grad():
        return network.encode_text(inputs.input_ids, inputs.attention_mask)


def softmax(logits_K: Float[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """p_k = exp(x_k - max x) / sum_j exp(x_j - max x), in float64 as in the runtime's ensemble."""
    wide = logits_K.astype(np.float64)
    powers = np.exp(wide - wide.max())
    probability_K: Float[np.ndarray, " K"] = powers / powers.sum()
    return probability_K


def _completeness(attribution: Attribution) -> dict[str, float]:
    record = asdict(attribution)
    return {name: record[name] for name in ("output", "baseline", "error", "steps")}


def explanation_threads(config: Config, threads: int | None) -> int | None:
    """Torch's threads for a command: the given number; without one, one for a small CT, else None, which is torch's.

    The operations of a small network take less time than the synchronisation of threads on a machine with other work.
    """
    small = math.prod(config.ct.shape_DHW) <= SMALL_CT_VOXELS
    return 1 if threads is None and small else threads


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Set torch's thread count, one for the process, inside the block; None leaves it unchanged."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
