"""Output type of networks that return logits only, and the linear fusion part of networks with one encoder.

B batch, C channels, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from tmi.toolkit.config.schema import CLASSES, Config
from tmi.toolkit.models.registry import feature_width


class Logits(NamedTuple):
    """Output of a network that returns logits only."""

    logits_BK: Float[Tensor, "B K"]
    """Class order as in `tmi.toolkit.config.schema.CLASSES`."""


class LinearHead(nn.Module):
    """Feature [B,C] -> logits [B,K]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, len(CLASSES))

    def forward(self, feature: Float[Tensor, "B C"]) -> Logits:
        """Logits [B,K]."""
        return Logits(self.out(feature))


def linear_head(config: Config) -> LinearHead:
    """The fusion part of a network that uses the image alone."""
    return LinearHead(feature_width(config, "image"))
