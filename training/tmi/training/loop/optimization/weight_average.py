"""Exponential moving average of a network's weights, updated after every optimizer step.

    first step  average = weights;  later  average = decay * average + (1 - decay) * weights

The statistics of BatchNorm are averaged too. Implementation: `torch.optim.swa_utils.AveragedModel`.
"""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def averaged_copy(network: nn.Module, decay: float) -> AveragedModel:
    """Average of the network's weights, without gradients; `update_parameters` adds those of a step."""
    update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    average = AveragedModel(network, multi_avg_fn=update, use_buffers=True)
    average.requires_grad_(False)
    return average
