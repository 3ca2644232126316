"""Simple feature fusion: a few axial slices are classified one by one with the radiomics, and averaged.

B batch, S slices, F features of a slice. A slice goes through a 2D ResNet and a Linear to 8 features; these and the
scaled radiomics through Linear -> 8, ReLU, Linear -> 2; the softmax is averaged over the slices. The logits returned
are the logarithm of that average, so the cross entropy is that of the averaged probability. Source: Y. S. Choi et al.
2021.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tmi.toolkit.config.baseline_schema import Resnet2dConfig, SimpleFfConfig
from tmi.toolkit.config.schema import CLASSES, N_RADIOMICS, Config
from tmi.toolkit.models.encoders.resnet2d import create_resnet2d
from tmi.toolkit.models.outputs import Logits

REFERENCE_DEPTH = 64
"""Depth of a CT to which the slice numbers in the config refer."""


class SliceFeatures(nn.Module):
    """CT volume [B,1,D,H,W] -> features of its slices [B,S*F], one slice after the other."""

    def __init__(self, config: SimpleFfConfig, encoder: Resnet2dConfig, *, depth: int) -> None:
        super().__init__()
        self.slices = [min(round(s * depth / REFERENCE_DEPTH), depth - 1) for s in config.slices_of_64]
        self.slice_encoder = create_resnet2d(encoder)
        self.reduce = nn.Linear(encoder.feature_width, config.features)

    def forward(self, ct: Float[Tensor, "B 1 D H W"]) -> Float[Tensor, "B SF"]:
        """Features [B,S*F]."""
        slices = torch.stack([ct[:, :, s] for s in self.slices], dim=1).flatten(0, 1)  # [B*S,1,H,W]
        features: Tensor = self.reduce(self.slice_encoder(slices))
        return features.reshape(-1, len(self.slices) * features.shape[1])


class SimpleFfFusion(nn.Module):
    """Features of the slices [B,S*F] and radiomics [B,1781] -> logits."""

    temperature: Tensor

    def __init__(self, config: SimpleFfConfig) -> None:
        super().__init__()
        self.features, self.count = config.features, len(config.slices_of_64)
        self.hidden = nn.Linear(config.features + N_RADIOMICS, config.features)
        self.out = nn.Linear(config.features, len(CLASSES))
        # 1 in training. No layer computes the averaged logits, so the calibrated temperature is a buffer.
        self.register_buffer("temperature", torch.ones(1))

    def forward(self, ct_features: Float[Tensor, "B SF"], radiomics: Float[Tensor, "B 1781"]) -> Logits:
        """Logarithm of the averaged probabilities [B,K], divided by the temperature."""
        slices_BSF = ct_features.reshape(-1, self.count, self.features)
        radiomics_BSR = radiomics.unsqueeze(1).expand(-1, self.count, -1)
        logits_BSK = self.out(self.hidden(torch.cat((slices_BSF, radiomics_BSR), dim=2)).relu())
        # log(mean over slices of softmax), computed in log space
        log_p = logits_BSK.log_softmax(dim=2).logsumexp(dim=1) - math.log(self.count)
        return Logits(log_p / self.temperature)


def slice_features(config: Config) -> SliceFeatures:
    """The CT part of a config."""
    return SliceFeatures(config.system.simpleff, config.system.resnet2d, depth=config.ct.shape_DHW[0])


def create_fusion(config: Config) -> SimpleFfFusion:
    """The fusion part of a config."""
    return SimpleFfFusion(config.system.simpleff)
