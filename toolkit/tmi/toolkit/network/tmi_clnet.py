"""TMI-CLNet: CT, text and radiomics encoders, interaction and head.

State-dict prefixes `ct_encoder.`, `text_encoder.` and `fusion.` are where the export cuts the graph. Source: L. Wu et
al., TMI-CLNet; sizes and the paper's open points in `docs/decisions.md`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tmi.toolkit.config import NetworkConfig
from tmi.toolkit.network.ct_encoder import CtEncoder
from tmi.toolkit.network.fusion import Fusion, FusionOutput
from tmi.toolkit.network.text_encoder import TextEncoder


class TmiClnet(nn.Module):
    """The whole network of one fold."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.ct_encoder = CtEncoder(config.ct_encoder)
        self.text_encoder = TextEncoder(config.text_encoder)
        self.fusion = Fusion(config)

    def encode_ct(self, ct: Float[Tensor, "B 1 D H W"]) -> Float[Tensor, "B C_ct"]:
        """CT feature."""
        feature: Tensor = self.ct_encoder(ct)
        return feature

    def encode_text(
        self, input_ids: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B C_text"]:
        """Text feature."""
        feature: Tensor = self.text_encoder(input_ids, attention_mask)
        return feature

    def fuse(
        self,
        ct_features: Float[Tensor, "B C_ct"],
        text_features: Float[Tensor, "B C_text"],
        radiomics: Float[Tensor, "B 1781"],
    ) -> FusionOutput:
        """Logits and aligned features from encoder features and scaled radiomics."""
        output: FusionOutput = self.fusion(ct_features, text_features, radiomics)
        return output

    def forward(
        self,
        ct: Float[Tensor, "B 1 D H W"],
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"],
        radiomics: Float[Tensor, "B 1781"],
    ) -> FusionOutput:
        """Logits [B,K] and aligned features [B,C]."""
        return self.fuse(self.encode_ct(ct), self.encode_text(input_ids, attention_mask), radiomics)


def build(config: NetworkConfig, *, seed: int) -> TmiClnet:
    """The network with random weights drawn from `seed`; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TmiClnet(config)
