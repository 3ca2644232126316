"""CT-only baseline of a fused network: the same map of the same case without clinical record and radiomics.

Figure 3 of the paper claims that the fusion moves the attention to the liver. The shares of both maps inside the liver
quantify this claim for one case; they can be compared over a cohort.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from tmi.runtime.explanation.anatomy import Anatomy
from tmi.runtime.explanation.explainer import STAGES, softmax
from tmi.runtime.explanation.inputs import fold_inputs
from tmi.runtime.explanation.localization import LocalizationMetrics
from tmi.runtime.explanation.model_source import ModelSource
from tmi.runtime.explanation.xgradcam import combined_map, stage_cams, unit_range
from tmi.toolkit.cases.case import Case
from tmi.toolkit.errors import UsageError
from tmi.toolkit.preprocessing.pipeline import prepare_case


@dataclass(frozen=True, kw_only=True)
class CtOnlyMap:
    """Map and prediction of one case by the CT-only models."""

    source: ModelSource
    """The CT-only run."""
    probability: dict[str, float]
    """Class name -> probability, mean over the folds."""
    map_DHW: Float[np.ndarray, "D H W"]
    """The map on the CT's own canonical grid."""
    localization: LocalizationMetrics
    """Localization metrics of the map."""


def require_ct_only(source: ModelSource) -> ModelSource:
    """Return the source if its models use the CT alone.

    Raises:
        UsageError: they use other modalities too.
    """
    if not source.ct_only:
        raise UsageError(
            f"run {source.folder} uses {', '.join(source.config.network.modalities)}, not the CT alone",
            fix="""train the ablation: tmi train --set 'network.modalities=["image"]'""",
        )
    return source


def ct_only_map(source: ModelSource, case: Case, anatomy: Anatomy, *, target: str) -> CtOnlyMap:
    """Map and mean prediction over all folds of a CT-only run.

    Args:
        source: the CT-only run.
        case: the case; preprocessed again, because the run may use another input grid.
        anatomy: anatomy of the case.
        target: class whose logit is explained, as in the fused network's map.

    Raises:
        InputRejectedError: the case is rejected with the run's settings.
    """
    prepared = prepare_case(case, source.config, source.schema)
    index, shape_DHW = source.classes.index(target), source.config.ct.shape_DHW
    maps, probabilities = [], []
    for fold in source.folds:
        model = source.load(fold)
        network, inputs = model.network, fold_inputs(prepared, model, source.config)
        outputs: list[torch.Tensor] = []

        def forward() -> torch.Tensor:
            logits = network(inputs.ct, inputs.input_ids, inputs.attention_mask, inputs.radiomics).logits_BK[0]  # noqa: B023
            outputs.append(logits.detach())  # noqa: B023 - both are used within this iteration
            logit: torch.Tensor = logits[index]
            return logit

        assert network.ct_encoder is not None  # the network uses the CT
        _, cams = stage_cams(forward, [getattr(network.ct_encoder.backbone, name) for name in STAGES])
        maps.append(combined_map(cams, shape_DHW).numpy())
        probabilities.append(softmax(outputs[0].numpy()))
    mean_K = np.mean(probabilities, axis=0)
    map_DHW = anatomy.to_ct_grid(unit_range(torch.from_numpy(np.mean(maps, axis=0))).numpy(), source.config.ct)
    return CtOnlyMap(
        source=source,
        probability={name: float(p) for name, p in zip(source.classes, mean_K, strict=True)},
        map_DHW=map_DHW,
        localization=anatomy.localization_metrics(map_DHW),
    )


def ct_only_document(baseline: CtOnlyMap) -> dict[str, Any]:
    """JSON values of the baseline, under `ct_only` in `explanation.json`."""
    return {
        "digest": baseline.source.digest,
        "folds": list(baseline.source.folds),
        "probability": baseline.probability,
        "places": asdict(baseline.localization),
    }
