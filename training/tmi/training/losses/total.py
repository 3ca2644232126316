"""Joint loss, equation (6) of the paper: total = cross entropy + alpha * TMFF."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from tmi.toolkit.config.schema import LossConfig
from tmi.toolkit.models.tmi_clnet.fusion import FusionOutput
from tmi.training.losses.tmff import tmff


class Loss(NamedTuple):
    """The joint loss and its parts; scalars."""

    total: Float[Tensor, ""]
    task: Float[Tensor, ""]
    alignment: Float[Tensor, ""]


def total_loss(output: FusionOutput, labels_B: Int[Tensor, " B"], config: LossConfig) -> Loss:
    """Joint loss of one batch. With alpha 0 the alignment is not computed."""
    task = cross_entropy(output.logits_BK, labels_B, label_smoothing=config.label_smoothing)
    if config.alpha == 0:
        return Loss(task, task, task.new_zeros(()))
    alignment = tmff(output.clinical_BC, output.radiomics_BC, output.image_BC, labels_B, config)
    return Loss(task + config.alpha * alignment, task, alignment)


def task_loss(output: Any, labels_B: Int[Tensor, " B"], config: LossConfig) -> Loss:
    """Cross entropy alone, for any output with `logits_BK`; the alignment part is 0."""
    task = cross_entropy(output.logits_BK, labels_B, label_smoothing=config.label_smoothing)
    return Loss(task, task, task.new_zeros(()))
