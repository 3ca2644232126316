"""`mmd` as a system: its loss.

    loss = cross entropy + weight * reconstruction

The network is `tmi.toolkit.models.baselines.mmd`'s.
"""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor

from tmi.toolkit.config.schema import LossConfig
from tmi.toolkit.models.baselines.mmd import MmdOutput
from tmi.training.losses.total import Loss, task_loss


def loss(output: MmdOutput, labels_B: Int[Tensor, " B"], config: LossConfig) -> Loss:
    """Cross entropy plus the reconstruction, which stands where other systems have the alignment."""
    task = task_loss(output, labels_B, config).task
    return Loss(task + output.reconstruction, task, output.reconstruction)
