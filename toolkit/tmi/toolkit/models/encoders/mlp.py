"""Multilayer perceptron over the radiomic features: Linear without bias, BatchNorm, ReLU, Linear without bias."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from tmi.toolkit.config.schema import N_RADIOMICS, Config, RadiomicsEncoderConfig


class RadiomicsEncoder(nn.Module):
    """Scaled features [B,1781] -> feature [B,C]. BatchNorm cannot train on a batch of one."""

    def __init__(self, config: RadiomicsEncoderConfig) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(N_RADIOMICS, config.hidden, bias=False),
            nn.BatchNorm1d(config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, config.out, bias=False),
        )

    def forward(self, radiomics: Float[Tensor, "B 1781"]) -> Float[Tensor, "B C"]:
        """Feature [B,C]."""
        feature: Tensor = self.layers(radiomics)
        return feature


def radiomics_encoder(config: Config) -> RadiomicsEncoder:
    """The radiomics encoder of a config."""
    return RadiomicsEncoder(config.network.radiomics_encoder)
