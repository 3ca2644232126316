"""The CT-only network beside the fused one: the same map of the same case without clinical record and radiomics.

The paper's Figure 3 claims that the fusion draws the attention to the liver. The two shares of the map inside the liver
are the numbers to that claim, for one case; over a cohort they can be compared.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from tmi.runtime.explain.anatomy import Anatomy
from tmi.runtime.explain.explainer import STAGES, softmax
from tmi.runtime.explain.inputs import fold_inputs
from tmi.runtime.explain.localization import LocalizationMetrics
from tmi.runtime.explain.model_source import ModelSource
from tmi.runtime.explain.xgradcam import combined_map, stage_cams, unit_range
from tmi.toolkit.cases.case import Case
from tmi.toolkit.errors import UsageError
from tmi.toolkit.preprocessing.pipeline import prepare_case


@dataclass(frozen=True, kw_only=True)
class CtOnlyMap:
    """One case as the CT-only models see it."""

    source: ModelSource
    """The run."""
    probability: dict[str, float]
    """Class name -> probability, the mean over the folds."""
    map_DHW: Float[np.ndarray, "D H W"]
    """The map on the CT's own canonical grid."""
    localization: LocalizationMetrics
    """Where its mass lies."""


def require_ct_only(source: ModelSource) -> ModelSource:
    """The source itself, where its models see the CT alone.

    Raises:
        UsageError: they see more.
    """
    if not source.ct_only:
        raise UsageError(
            f"run {source.folder} sees {', '.join(source.config.network.modalities)}, not the CT alone",
            fix="""train the ablation: tmi train --set 'network.modalities=["image"]'""",
        )
    return source


def ct_only_map(source: ModelSource, case: Case, anatomy: Anatomy, *, target: str) -> CtOnlyMap:
    """Map and answer of the mean over all folds of a CT-only run.

    Args:
        source: the run.
        case: prepared here anew, since the run may take another input grid.
        anatomy: of the case.
        target: class whose logit the map explains, as in the fused map beside it.

    Raises:
        InputRejectedError: the case is refused with the run's settings.
    """
    prepared = prepare_case(case, source.config, source.schema)
    index, shape_DHW = source.classes.index(target), source.config.ct.shape_DHW
    maps, answers = [], []
    for fold in source.folds:
        model = source.load(fold)
        network, inputs = model.network, fold_inputs(prepared, model, source.config)
        said: list[torch.Tensor] = []

        def forward() -> torch.Tensor:
            logits = network(inputs.ct, inputs.input_ids, inputs.attention_mask, inputs.radiomics).logits_BK[0]  # noqa: B023
            said.append(logits.detach())  # noqa: B023 - both are used up within this turn of the loop
            chosen: torch.Tensor = logits[index]
            return chosen

        assert network.ct_encoder is not None  # the network sees the CT
        _, cams = stage_cams(forward, [getattr(network.ct_encoder.backbone, name) for name in STAGES])
        maps.append(combined_map(cams, shape_DHW).numpy())
        answers.append(softmax(said[0].numpy()))
    mean_K = np.mean(answers, axis=0)
    map_DHW = anatomy.to_ct_grid(unit_range(torch.from_numpy(np.mean(maps, axis=0))).numpy(), source.config.ct)
    return CtOnlyMap(
        source=source,
        probability={name: float(p) for name, p in zip(source.classes, mean_K, strict=True)},
        map_DHW=map_DHW,
        localization=anatomy.localization_metrics(map_DHW),
    )


def ct_only_document(found: CtOnlyMap) -> dict[str, Any]:
    """What `explanation.json` says of it under `ct_only`."""
    return {
        "digest": found.source.digest,
        "folds": list(found.source.folds),
        "probability": found.probability,
        "places": asdict(found.localization),
    }
