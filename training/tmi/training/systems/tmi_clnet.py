"""TMI-CLNet as a system: the loss of the whole network, and of its ablation over modalities (Table 2)."""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor

from tmi.toolkit.config.schema import LossConfig
from tmi.toolkit.models.outputs import Logits
from tmi.toolkit.models.tmi_clnet.fusion import FusionOutput
from tmi.training.losses.total import Loss, task_loss, total_loss


def loss(output: FusionOutput | Logits, labels_B: Int[Tensor, " B"], config: LossConfig) -> Loss:
    """The joint loss; with fewer than three modalities the cross entropy alone, as TMFF is of three."""
    if isinstance(output, FusionOutput):
        return total_loss(output, labels_B, config)
    return task_loss(output, labels_B, config)
