"""The fusion part of TMI-CLNet: radiomics encoder, projections, IMA, TCAF, head.

B batch, C width of a modality (256), K classes.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, cat, nn

from tmi.toolkit.config.schema import MODALITIES, NetworkConfig
from tmi.toolkit.models.encoders.mlp import RadiomicsEncoder
from tmi.toolkit.models.tmi_clnet.head import Head
from tmi.toolkit.models.tmi_clnet.ima import IntraModalityAggregation
from tmi.toolkit.models.tmi_clnet.tcaf import TripleModalCrossAttention


class FusionOutput(NamedTuple):
    """Logits and the three features after the IMA, which the alignment loss compares."""

    logits_BK: Float[Tensor, "B K"]
    clinical_BC: Float[Tensor, "B C"]
    radiomics_BC: Float[Tensor, "B C"]
    image_BC: Float[Tensor, "B C"]


class Fusion(nn.Module):
    """Encoder features [B,C_ct], [B,C_text] and scaled radiomics [B,1781] -> `FusionOutput`."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        fusion = config.fusion
        widths = feature_widths(config)
        self.radiomics_encoder = RadiomicsEncoder(config.radiomics_encoder)
        self.projection = nn.ModuleDict({m: nn.Linear(widths[m], fusion.width) for m in MODALITIES})
        self.projection_norm = nn.ModuleDict(
            {
                m: nn.LayerNorm(fusion.width, eps=fusion.layer_norm_eps) if fusion.projection_norm else nn.Identity()
                for m in MODALITIES
            }
        )
        self.ima = nn.ModuleDict(
            {m: IntraModalityAggregation(fusion) if fusion.ima else nn.Identity() for m in MODALITIES}
        )
        self.tcaf = TripleModalCrossAttention(fusion) if fusion.tcaf else None
        self.head = Head(config.head)

    def forward(
        self,
        ct_features: Float[Tensor, "B C_ct"],
        text_features: Float[Tensor, "B C_text"],
        radiomics: Float[Tensor, "B 1781"],
    ) -> FusionOutput:
        """Logits and aligned features."""
        # Each feature becomes a sequence of one token [B,1,C] for the IMA.
        encoded = {"clinical": text_features, "radiomics": self.radiomics_encoder(radiomics), "image": ct_features}
        features = {}
        for modality, feature in encoded.items():
            projected = self.projection_norm[modality](self.projection[modality](feature))
            features[modality] = self.ima[modality](projected.unsqueeze(1)).squeeze(1)
        ring = tuple(features[m] for m in MODALITIES)
        fused = self.tcaf(*ring) if self.tcaf is not None else cat(ring, dim=1).unsqueeze(1)
        return FusionOutput(self.head(fused), *ring)


def feature_widths(config: NetworkConfig) -> dict[str, int]:
    """Modality -> width of its encoder's feature, in the order of the TCAF ring."""
    return {
        "clinical": config.text_encoder.hidden_size,
        "radiomics": config.radiomics_encoder.out,
        "image": config.ct_encoder.feature_width,
    }
