"""Network and loss of the toy model (`factories.toy_model`). B batch, D H W voxels, C channels, K classes."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, cat, nn
from torch.nn.functional import cross_entropy

from factories.toy_model import ToyParameters
from tmi.toolkit.config.schema import CLASSES, Config, LossConfig
from tmi.toolkit.models.outputs import Logits
from tmi.toolkit.models.registry import feature_width
from tmi.training.losses.total import Loss


class ToyEncoder(nn.Module):
    """CT volume [B,1,D,H,W] -> mean of one convolution [B,C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(1, channels, kernel_size=3)

    def forward(self, ct: Float[Tensor, "B 1 D H W"]) -> Float[Tensor, "B C"]:
        """Feature [B,C]."""
        feature: Tensor = self.convolution(ct).relu().mean(dim=(2, 3, 4))
        return feature


class ToyFusion(nn.Module):
    """Image and text features -> logits [B,K] by one layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classify = nn.Linear(width, len(CLASSES))

    def forward(self, ct_features: Float[Tensor, "B C1"], text_features: Float[Tensor, "B C2"]) -> Logits:
        """Logits [B,K]."""
        return Logits(self.classify(cat((ct_features, text_features), dim=1)))


def image_encoder(config: Config) -> ToyEncoder:
    """The image encoder of a config."""
    return ToyEncoder(config.system.parameters_as(ToyParameters).channels)


def fusion(config: Config) -> ToyFusion:
    """The fusion part of a config."""
    return ToyFusion(feature_width(config, "image") + feature_width(config, "clinical"))


def toy_loss(output: Logits, labels_B: Int[Tensor, " B"], config: LossConfig) -> Loss:
    """Cross entropy with label smoothing, which no model of the package has."""
    task = cross_entropy(output.logits_BK, labels_B, label_smoothing=0.2)
    return Loss(task, task, task.new_zeros(()))
