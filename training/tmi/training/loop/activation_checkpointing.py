"""Activation checkpointing of residual blocks and text encoder layers.

A checkpointed block stores only its input and recomputes its activations in the backward pass. The recomputation
would update the running statistics of BatchNorm a second time, so they are frozen while it runs. The trained weights
are bit-identical to those without checkpointing. Source: T. Chen et al. 2016, "Training Deep Nets with Sublinear Memory
Cost".
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
    """Residual blocks of the network's CT encoder and layers of its text encoder; empty if it has neither."""
    encoder_of = encoders(network)
    blocks: list[nn.Module] = []
    backbone = getattr(encoder_of.get("ct"), "backbone", encoder_of.get("ct"))
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        blocks += list(getattr(backbone, stage, None) or [])
    bert = getattr(encoder_of.get("text"), "bert", None)
    blocks += list(bert.encoder.layer) if bert is not None else []
    return blocks


def checkpoint_activations(network: nn.Module) -> None:
    """Enable activation checkpointing on every block that `checkpointable_blocks` returns."""
    for block in checkpointable_blocks(network):
        _checkpoint(block)


def _checkpoint(block: nn.Module) -> None:
    forward = block.forward
    norms: list[nn.Module] = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        # contexts of the first forward pass and of the recomputation
        return nullcontext(), _frozen_running_stats(norms)

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():  # nothing is saved for a backward pass, so there is nothing to checkpoint
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    block.forward = run


@contextmanager
def _frozen_running_stats(norms: list[nn.Module]) -> Iterator[None]:
    """BatchNorms in training mode normalise by the batch's statistics and keep their running statistics unchanged.

    The momentum is set to zero. `track_running_stats=False` is no option: the layer would then save other tensors than
    in the first pass, which `torch.utils.checkpoint` rejects. The recomputation may stop early, so
    `num_batches_tracked` is restored from a copy instead of being decremented.
    """
    training = [norm for norm in norms if norm.training]
    before = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in training]  # type: ignore[operator]
    for norm in training:
        norm.momentum = 0.0  # type: ignore[assignment]
    try:
        yield
    finally:
        for norm, momentum, num_batches in before:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(num_batches)  # type: ignore[operator]
