"""Reference outputs: the eager network of every fold on the golden inputs, in float32 and in float64.

Cases run one at a time and without padding. The reference is therefore independent of batch composition, and needs the
memory of one case.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from tmi.export.graphs.partition import FoldModels, GraphPartition
from tmi.runtime.verification.golden_inputs import GoldenInputs, trimmed
from tmi.runtime.verification.outputs import Outputs
from tmi.runtime.verification.parity import relative_error
from tmi.toolkit.models.multimodal import MultimodalNetwork

FLOAT64_MAX_VOXELS = 2**20
"""Maximum voxels of a CT for a float64 reference. Above it torch's float64 convolutions need too much memory."""


def compute_eager_reference(models: FoldModels, partition: GraphPartition, golden: GoldenInputs) -> Outputs:
    """Features [B,C] of every distinct encoder and logits [B,F,K] of every fold, in float32."""
    return _run_eager(models, partition, golden, torch.float32)


def float64_reference(models: FoldModels, partition: GraphPartition, golden: GoldenInputs) -> Outputs | None:
    """The same outputs in float64; None if a CT has more than `FLOAT64_MAX_VOXELS` voxels."""
    if int(np.prod(golden.ct_B1DHW.shape[2:])) > FLOAT64_MAX_VOXELS:
        return None
    return _run_eager(models, partition, golden, torch.float64)


def float32_noise(reference: Outputs, reference_float64: Outputs | None) -> dict[str, float] | None:
    """Relative error of eager float32 against eager float64 for each graph (`relative_error`)."""
    if reference_float64 is None:
        return None
    exact = reference_float64.by_graph()
    return {name: relative_error(output, exact[name]) for name, output in reference.by_graph().items()}


@torch.inference_mode()
def _run_eager(models: FoldModels, partition: GraphPartition, golden: GoldenInputs, dtype: torch.dtype) -> Outputs:
    features: dict[str, Tensor] = {}
    logits = []
    for position, fold in enumerate(partition.folds):
        model = models.network(fold)
        if dtype is not torch.float32:
            model = copy.deepcopy(model).to(dtype)
        fusion_inputs: list[Tensor] = []
        ct, text = partition.encoder_name("ct", fold), partition.encoder_name("text", fold)
        for name, encode in ((ct, _encode_ct), (text, _encode_text)):
            if name is not None:
                # An encoder that several folds share runs for the first of them only.
                if name not in features:
                    features[name] = encode(model, golden, name, dtype)
                fusion_inputs.append(features[name])
        if model.uses_radiomics:
            fusion_inputs.append(torch.from_numpy(golden.radiomics_BFR[:, position]).to(dtype))
        rows = [model.fusion(*(t[b : b + 1] for t in fusion_inputs)) for b in range(golden.count)]
        logits.append(torch.cat([row.logits_BK for row in rows]))
    return Outputs(
        features={name: f.numpy() for name, f in features.items()}, logits_BFK=torch.stack(logits, dim=1).numpy()
    )


def _encode_ct(model: MultimodalNetwork, golden: GoldenInputs, name: str, dtype: torch.dtype) -> Tensor:
    assert model.ct_encoder is not None  # the partition is of this network
    volumes = (torch.from_numpy(golden.ct_B1DHW[b : b + 1]).to(dtype) for b in range(golden.count))
    return torch.cat([model.ct_encoder(volume) for volume in volumes])


def _encode_text(model: MultimodalNetwork, golden: GoldenInputs, name: str, dtype: torch.dtype) -> Tensor:
    assert model.text_encoder is not None
    rows = (trimmed(golden.rows([b])).texts[name] for b in range(golden.count))
    return torch.cat(
        [model.text_encoder(torch.from_numpy(t.input_ids_BT), torch.from_numpy(t.attention_mask_BT)) for t in rows]
    )
