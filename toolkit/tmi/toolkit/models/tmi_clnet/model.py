"""TMI-CLNet: CT, text and radiomics encoders, interaction and head.

Source: L. Wu et al., TMI-CLNet; sizes and the paper's open points in `docs/decisions.md`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tmi.toolkit.config.schema import Config, NetworkConfig
from tmi.toolkit.modality import MODALITIES
from tmi.toolkit.models.encoders.bert import TextEncoder
from tmi.toolkit.models.encoders.resnet3d import CtEncoder
from tmi.toolkit.models.factory import assemble_network
from tmi.toolkit.models.multimodal import MultimodalNetwork
from tmi.toolkit.models.tmi_clnet.fusion import Fusion, FusionOutput


class TmiClnet(MultimodalNetwork):
    """The whole network of one fold; `forward` returns a `FusionOutput`."""

    ct_encoder: CtEncoder
    text_encoder: TextEncoder
    fusion: Fusion

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(
            ct=CtEncoder(config.ct_encoder),
            text=TextEncoder(config.text_encoder),
            fusion=Fusion(config),
            radiomics=True,
        )

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


def build(config: NetworkConfig, *, seed: int) -> TmiClnet:
    """The network with random weights from `seed`; the caller's random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TmiClnet(config)


def create_tmi_clnet(config: Config) -> MultimodalNetwork:
    """TMI-CLNet, or its ablation with fewer than three modalities."""
    everything = len(config.network.modalities) == len(MODALITIES)
    return TmiClnet(config.network) if everything else assemble_network(config)
