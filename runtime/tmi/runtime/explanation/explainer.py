"""Explain one case with the models of a run or bundle: maps and attributions of every fold, and their mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from time import perf_counter

import numpy as np
import torch
from jaxtyping import Float

from tmi.runtime.explanation.inputs import EncodedCase, FoldInputs, encode, fold_inputs
from tmi.runtime.explanation.insertion_deletion import PerturbationCurves, curves
from tmi.runtime.explanation.integrated_gradients import (
    Attribution,
    radiomics_attribution,
    sum_by_field,
    text_attribution,
)
from tmi.runtime.explanation.model_source import FoldModel, ModelSource
from tmi.runtime.explanation.parameter_randomization import RandomizationStep, randomization_test
from tmi.runtime.explanation.results import REPORT_FIELD, Explanation, FoldExplanation, mean_fields
from tmi.runtime.explanation.tcaf_attention import ring_attention
from tmi.runtime.explanation.xgradcam import combined_map, stage_cams, unit_range
from tmi.runtime.serving.input_warnings import case_alerts
from tmi.toolkit.cases.case import Case
from tmi.toolkit.clinical.record import read_clinical
from tmi.toolkit.clinical.rendering import field_spans, sentences
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.models.tmi_clnet.model import TmiClnet
from tmi.toolkit.preprocessing.pipeline import PreparedCase
from tmi.toolkit.radiomics.scaler import Scaled

LogCallback = Callable[[str], None]
"""Called with a short text when a stage starts."""
STAGES = ("layer1", "layer2", "layer3", "layer4")
"""The four residual stages of the CT encoder."""


class Explainer:
    """Explains cases with some folds of a source.

    Args:
        source: run or bundle.
        folds: fold numbers of the source.
        target: class to explain; None: for each case the class that these folds predict.
        log: called with a short text at every stage.
    """

    def __init__(
        self,
        source: ModelSource,
        folds: tuple[int, ...],
        *,
        target: str | None = None,
        log: LogCallback = lambda words: None,
    ) -> None:
        self.source = source
        self.folds = folds
        self._target = target
        self._log = log

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
        start = perf_counter()
        encoded = {fold: self._encoded(fold, prepared) for fold in self.folds}
        logits_FK = [encoded[fold][1] for fold in self.folds]
        probability_FK = np.stack([softmax(logits_K) for logits_K in logits_FK])
        if not np.isfinite(probability_FK).all():
            raise InputRejectedError(
                "the network's output is not a finite number",
                fix="check the case with `tmi check`",
                code="answer-not-finite",
                case_id=case.case_id,
            )
        mean_K = probability_FK.mean(axis=0)
        seconds["answer"] = perf_counter() - start
        positive = source.positive
        predicted = positive if mean_K[positive] >= source.threshold else 1 - positive
        target = predicted if self._target is None else source.classes.index(self._target)
        folds = tuple(
            self._fold(fold, prepared, encoded[fold][0], probability_FK[row], target, spans, seconds)
            for row, fold in enumerate(self.folds)
        )
        mean_map = torch.from_numpy(np.mean([f.map_DHW for f in folds], axis=0))
        return Explanation(
            case_id=case.case_id,
            target=source.classes[target],
            decision=source.classes[predicted],
            probability=self._by_class(mean_K),
            folds=folds,
            map_DHW=unit_range(mean_map).numpy(),
            radiomics_R=np.mean([f.radiomics_R for f in folds], axis=0),
            fields=mean_fields(folds),
            alerts=case_alerts(
                prepared,
                imputed_R=np.logical_or.reduce([scaled.imputed_NF[0] for _, _, scaled in encoded.values()]),
                clipped_R=np.logical_or.reduce([scaled.clipped_NF[0] for _, _, scaled in encoded.values()]),
            ),
            seconds=seconds,
        )

    def curves(self, explanation: Explanation, prepared: PreparedCase, *, steps: int) -> PerturbationCurves:
        """Insertion and deletion curves of the explanation's map; p is the mean over the explained folds."""
        self._log("insertion and deletion")
        target = self.source.classes.index(explanation.target)
        empty = self.source.config.ct.scale_to[0]
        by_fold = []
        for fold in self.folds:
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

            by_fold.append(curves(prepared.ct_1DHW[0], explanation.map_DHW, predict, steps=steps, empty=empty))
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

    def _encoded(self, fold: int, prepared: PreparedCase) -> tuple[EncodedCase, Float[np.ndarray, " K"], Scaled]:
        self._log(f"fold {fold}: prediction")
        model = self.source.load(fold)
        inputs = fold_inputs(prepared, model, self.source.config)
        encoded = encode(model.fused, inputs)
        with torch.inference_mode():
            logits = model.fused.fuse(encoded.ct_features, encoded.text_features, inputs.radiomics).logits_BK
        return encoded, logits[0].numpy(), model.scaler.transform(prepared.radiomics_F[None])

    def _fold(
        self,
        fold: int,
        prepared: PreparedCase,
        encoded: EncodedCase,
        probability_K: Float[np.ndarray, " K"],
        target: int,
        spans: list[tuple[str | None, int, int]],
        seconds: dict[str, float],
    ) -> FoldExplanation:
        config, positive = self.source.config, self.source.positive
        model: FoldModel = self.source.load(fold)
        network, inputs = model.fused, fold_inputs(prepared, model, config)
        marks = [perf_counter()]
        self._log(f"fold {fold}: map")
        map_DHW = ct_map(network, inputs, encoded.text_features.clone(), target, config.ct.shape_DHW)
        marks.append(perf_counter())
        self._log(f"fold {fold}: radiomics")
        radiomics = radiomics_attribution(network, inputs, encoded, positive)
        marks.append(perf_counter())
        self._log(f"fold {fold}: clinical text")
        offsets = model.tokenizer.offsets(prepared.text, max_length=config.clinical.max_length)
        text = text_attribution(network, inputs, encoded, positive, offsets)
        fields = sum_by_field(text.values_N, offsets, spans)
        marks.append(perf_counter())
        for name, elapsed in zip(("map", "radiomics", "clinical"), np.diff(marks), strict=True):
            seconds[name] += float(elapsed)
        with torch.inference_mode():
            fused = network.fuse(encoded.ct_features, encoded.text_features, inputs.radiomics)
        return FoldExplanation(
            fold=fold,
            probability=self._by_class(probability_K),
            map_DHW=map_DHW,
            radiomics_R=radiomics.values_N,
            fields={REPORT_FIELD if name is None else name: value for name, value in fields.items()},
            completeness={"radiomics": _completeness(radiomics), "clinical": _completeness(text)},
            attention=ring_attention(network.fusion.tcaf, (fused.clinical_BC, fused.radiomics_BC, fused.image_BC)),
        )

    def _by_class(self, p_K: Float[np.ndarray, " K"]) -> dict[str, float]:
        return {name: float(p) for name, p in zip(self.source.classes, p_K, strict=True)}


def ct_map(
    network: TmiClnet, inputs: FoldInputs, text_features: torch.Tensor, target: int, shape_DHW: tuple[int, int, int]
) -> Float[np.ndarray, "D H W"]:
    """XGrad-CAM of one fold on the input grid, in [0, 1]; radiomics and text stay fixed."""

    def forward() -> torch.Tensor:
        features = network.encode_ct(inputs.ct)
        logit: torch.Tensor = network.fuse(features, text_features, inputs.radiomics).logits_BK[0, target]
        return logit

    stages = [getattr(network.ct_encoder.backbone, name) for name in STAGES]
    _, cams = stage_cams(forward, stages)
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
