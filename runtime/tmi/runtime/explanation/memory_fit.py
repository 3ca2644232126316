"""Compares the memory that an explanation needs with what the machine has, before a model is loaded.

    bytes = process with torch + weights + the larger of map and clinical text + CT and maps of the case
          [+ a copy of the weights: the sanity check restores them] [+ weights of other folds that are kept]

The tensors of the map and of the text are counted on torch's meta device (`tmi.toolkit.models.live_memory`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tmi.runtime.explanation.explainer import STAGES
from tmi.runtime.explanation.integrated_gradients import text_batch_size
from tmi.runtime.explanation.model_source import KEPT_BYTES
from tmi.runtime.explanation.xgradcam import cams_of, run_recorded
from tmi.toolkit.compute.memory import require_memory
from tmi.toolkit.config.schema import Config
from tmi.toolkit.models.live_memory import MetaNetwork, live_bytes, meta_network
from tmi.toolkit.models.tmi_clnet.model import TmiClnet

GIB = 2**30
PROCESS_BYTES = int(0.65 * GIB)
"""Process with torch, captum and the readers of a case."""
TENSORS = 1.1
"""Memory of map or text, as a multiple of its live tensors."""
CASE_VOLUMES = 8
"""Float32 volumes of the network's grid that a case holds: its CT on two grids, maps, and their order."""


def explanation_bytes(config: Config, *, folds: int, sanity: bool) -> int:
    """Peak memory of the explanation of one case.

    Args:
        config: of a run or bundle that can be explained.
        folds: number of folds that are explained. With several, both classes have a map until all folds decided.
        sanity: whether the sanity check runs.
    """
    meta = meta_network(config)
    kept = min((folds - 1) * meta.weight_bytes, KEPT_BYTES)
    weights = meta.weight_bytes * (2 if sanity else 1) + kept
    tensors = max(_map_bytes(meta, both=folds > 1), _text_bytes(meta))
    return int(PROCESS_BYTES + weights + TENSORS * tensors + CASE_VOLUMES * 4 * math.prod(config.ct.shape_DHW))


def require_explanation_memory(config: Config, *, folds: int, sanity: bool, beside: int = 0, fix: str) -> None:
    """Raise if the machine has less memory than the explanation of a case needs.

    Args:
        config, folds, sanity: as in `explanation_bytes`.
        beside: bytes that the command holds meanwhile.
        fix: what needs less.

    Raises:
        UnavailableError: it does not fit.
    """
    require_memory("the explanation", explanation_bytes(config, folds=folds, sanity=sanity) + beside, fix=fix)


def _map_bytes(meta: MetaNetwork, *, both: bool) -> int:
    network = meta.network

    def forward() -> Tensor:
        logits: Tensor = network(meta.ct, meta.input_ids, meta.input_ids, meta.radiomics).logits_BK[0]
        return logits

    assert network.ct_encoder is not None  # a network that can be explained has one
    backbone = network.ct_encoder.backbone
    with live_bytes() as live:
        logits, outputs = run_recorded(forward, [getattr(backbone, name) for name in STAGES])
        cams_of(logits[0], outputs, keep_graph=both)
    return live.peak


def _text_bytes(meta: MetaNetwork) -> int:
    """Forward and backward pass of the texts of one run of BERT, from the gradient of the embeddings on."""
    network = meta.network
    if not isinstance(network, TmiClnet):
        return 0  # the CT-only network has no text

    def with_gradient(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.detach().requires_grad_()

    embeddings = network.text_encoder.bert.embeddings.word_embeddings
    ids = meta.input_ids.expand(text_batch_size(network, meta.input_ids.shape[1]), -1)
    handle = embeddings.register_forward_hook(with_gradient)
    try:
        with live_bytes() as live, torch.enable_grad():
            network.encode_text(ids, ids).sum().backward()  # type: ignore[no-untyped-call]
    finally:
        handle.remove()
    return live.peak
