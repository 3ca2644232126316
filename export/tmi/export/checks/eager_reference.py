"""What the validated model says: every fold's eager float32 answer to the golden inputs, each case on its own.

One case at a time and no padding: the reference has no neighbours to leak from, and needs the memory of one case.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from tmi.export.graphs.partition import FoldModels, GraphPartition
from tmi.runtime.verification.golden_inputs import GoldenInputs, trimmed
from tmi.runtime.verification.parity import Outputs, relative_error
from tmi.toolkit.models.multimodal import MultimodalNetwork

FLOAT64_MAX_VOXELS = 2**20
"""Voxels up to which a float64 run of the whole network is cheap; above, torch's float64 convolutions take too much."""


def eager_reference(models: FoldModels, partition: GraphPartition, golden: GoldenInputs) -> Outputs:
    """Features of every distinct encoder and logits of every fold, float32."""
    return _run_eager(models, partition, golden, torch.float32)


def float64_reference(models: FoldModels, partition: GraphPartition, golden: GoldenInputs) -> Outputs | None:
    """The same in float64, the arbiter between eager and an engine; None where it costs too much."""
    if int(np.prod(golden.ct_B1DHW.shape[2:])) > FLOAT64_MAX_VOXELS:
        return None
    return _run_eager(models, partition, golden, torch.float64)


def float32_noise(reference: Outputs, reference_float64: Outputs | None) -> dict[str, float] | None:
    """By graph, how far eager float32 itself is from eager float64 (`relative_error`)."""
    if reference_float64 is None:
        return None
    exact = reference_float64.by_graph()
    return {name: relative_error(answer, exact[name]) for name, answer in reference.by_graph().items()}


@torch.inference_mode()
def _run_eager(models: FoldModels, partition: GraphPartition, golden: GoldenInputs, dtype: torch.dtype) -> Outputs:
    features: dict[str, Tensor] = {}
    logits = []
    for position, fold in enumerate(partition.folds):
        model = models.network(fold)
        if dtype is not torch.float32:
            model = copy.deepcopy(model).to(dtype)
        taken: list[Tensor] = []
        for name, encode in ((partition.graph("ct", fold), _encode_ct), (partition.graph("text", fold), _encode_text)):
            if name is not None:
                if name not in features:
                    features[name] = encode(model, golden, name, dtype)
                taken.append(features[name])
        if model.uses_radiomics:
            taken.append(torch.from_numpy(golden.radiomics_BFR[:, position]).to(dtype))
        rows = [model.fusion(*(t[b : b + 1] for t in taken)) for b in range(golden.count)]
        logits.append(torch.cat([row.logits_BK for row in rows]))
    return Outputs(
        features={name: f.numpy() for name, f in features.items()}, logits_BFK=torch.stack(logits, dim=1).numpy()
    )


def _encode_ct(model: MultimodalNetwork, golden: GoldenInputs, name: str, dtype: torch.dtype) -> Tensor:
    assert model.ct_encoder is not None  # the cut is of this network
    volumes = (torch.from_numpy(golden.ct_B1DHW[b : b + 1]).to(dtype) for b in range(golden.count))
    return torch.cat([model.ct_encoder(volume) for volume in volumes])


def _encode_text(model: MultimodalNetwork, golden: GoldenInputs, name: str, dtype: torch.dtype) -> Tensor:
    assert model.text_encoder is not None
    rows = (trimmed(golden.rows([b])).texts[name] for b in range(golden.count))
    return torch.cat(
        [model.text_encoder(torch.from_numpy(t.input_ids_BT), torch.from_numpy(t.attention_mask_BT)) for t in rows]
    )
