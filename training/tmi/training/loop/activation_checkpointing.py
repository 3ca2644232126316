"""Activation checkpointing: the inside of a residual block or a text layer is computed again in the backward pass.

The second computation must leave no trace: a BatchNorm that saw its batch twice would move its running statistics
twice. So they are held still during it, and the weights come out as without checkpointing. Source: T. Chen et al. 2016.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tmi.training.systems.factory import encoders


def checkpointable_blocks(network: nn.Module) -> list[nn.Module]:
    """The blocks of a network's CT encoder and the layers of its text encoder, those it has."""
    there = encoders(network)
    blocks: list[nn.Module] = []
    backbone = getattr(there.get("ct"), "backbone", there.get("ct"))
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        blocks += list(getattr(backbone, stage, None) or [])
    bert = getattr(there.get("text"), "bert", None)
    blocks += list(bert.encoder.layer) if bert is not None else []
    return blocks


def checkpoint_activations(network: nn.Module) -> None:
    """Make every checkpointable block forget what it computed until the backward pass."""
    for block in checkpointable_blocks(network):
        _checkpoint(block)


def _checkpoint(block: nn.Module) -> None:
    forward = block.forward
    norms: list[nn.Module] = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _frozen_running_stats(norms)

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    block.forward = run


@contextmanager
def _frozen_running_stats(norms: list[nn.Module]) -> Iterator[None]:
    """Those BatchNorms that are training use the batch's statistics and keep their own as they are.

    By a momentum of zero: without statistics they would save other tensors than the first time, which torch refuses.
    The second computation may stop early, so what counts batches is put back, not counted down.
    """
    training = [norm for norm in norms if norm.training]
    before = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in training]  # type: ignore[operator]
    for norm in training:
        norm.momentum = 0.0  # type: ignore[assignment]
    try:
        yield
    finally:
        for norm, momentum, counted in before:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(counted)  # type: ignore[operator]
