"""TMI-CLNet as a system: the whole network, or its ablation over modalities (Table 2)."""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor, nn

from tmi.toolkit.config import MODALITIES, Config, LossConfig
from tmi.toolkit.network.fusion import FusionOutput
from tmi.toolkit.network.modality_subset import ModalitySubset, SubsetOutput
from tmi.toolkit.network.tmi_clnet import TmiClnet
from tmi.training.losses.total import Loss, task_loss, total_loss


def make(config: Config) -> nn.Module:
    """The network of the paper with all three modalities, else the ablation's."""
    if len(config.network.modalities) == len(MODALITIES):
        return TmiClnet(config.network)
    return ModalitySubset(config.network)


def loss(output: FusionOutput | SubsetOutput, labels_B: Int[Tensor, " B"], config: LossConfig) -> Loss:
    """The joint loss; with fewer than three modalities the cross entropy alone, as TMFF is of three."""
    if isinstance(output, FusionOutput):
        return total_loss(output, labels_B, config)
    return task_loss(output, labels_B, config)
