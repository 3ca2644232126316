"""The three encoders of TMI-CLNet, for the systems that share them.

B batch, D H W voxels, T tokens, C_m width of a modality's feature.
"""

from __future__ import annotations

from collections.abc import Collection

from jaxtyping import Float, Int
from torch import Tensor, nn

from tmi.toolkit.config import MODALITIES, NetworkConfig
from tmi.toolkit.network.ct_encoder import CtEncoder
from tmi.toolkit.network.radiomics_encoder import RadiomicsEncoder
from tmi.toolkit.network.text_encoder import TextEncoder


class ThreeEncoders(nn.Module):
    """Inputs of the network -> feature of each modality asked for, in the order of the ring."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.ct_encoder = CtEncoder(config.ct_encoder)
        self.text_encoder = TextEncoder(config.text_encoder)
        self.radiomics_encoder = RadiomicsEncoder(config.radiomics_encoder)
        self.widths = {
            "clinical": config.text_encoder.hidden_size,
            "radiomics": config.radiomics_encoder.out,
            "image": config.ct_encoder.feature_width,
        }

    def forward(
        self,
        ct: Float[Tensor, "B 1 D H W"],
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"],
        radiomics: Float[Tensor, "B 1781"],
        modalities: Collection[str] = MODALITIES,
    ) -> dict[str, Float[Tensor, "B C_m"]]:
        """The features; the encoder of a modality that is not asked for does not run."""
        features: dict[str, Tensor] = {}
        if "clinical" in modalities:
            features["clinical"] = self.text_encoder(input_ids, attention_mask)
        if "radiomics" in modalities:
            features["radiomics"] = self.radiomics_encoder(radiomics)
        if "image" in modalities:
            features["image"] = self.ct_encoder(ct)
        return features
