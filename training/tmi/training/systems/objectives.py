"""Losses of the networks that have more than the cross entropy: TMI-CLNet and `mmd`.

    tmi-clnet: cross entropy + alpha * TMFF;  the cross entropy alone for an ablation with fewer than three modalities
    mmd:       cross entropy + weighted reconstruction error, which the network computes

The registry names these functions.
"""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor

from tmi.toolkit.config.schema import LossConfig
from tmi.toolkit.models.baselines.mmd import MmdOutput
from tmi.toolkit.models.outputs import Logits
from tmi.toolkit.models.tmi_clnet.fusion import FusionOutput
from tmi.training.losses.total import Loss, task_loss, total_loss


def tmi_clnet_loss(output: FusionOutput | Logits, labels_B: Int[Tensor, " B"], config: LossConfig) -> Loss:
    """Joint loss of TMI-CLNet; the cross entropy alone with fewer than three modalities, as TMFF needs three."""
    if isinstance(output, FusionOutput):
        return total_loss(output, labels_B, config)
    return task_loss(output, labels_B, config)


def mmd_loss(output: MmdOutput, labels_B: Int[Tensor, " B"], config: LossConfig) -> Loss:
    """Cross entropy plus reconstruction; the reconstruction is reported as the alignment part."""
    task = task_loss(output, labels_B, config).task
    return Loss(task + output.reconstruction, task, output.reconstruction)
