"""TMI-CLNet with one or two modalities: the ablation of the paper's Table 2.

One: encoder, projection, head on [B,1,256] ("a direct connection"). Two: both are projected, attend to each other as
the TCAF's modalities do (two-way cross-attention, no IMA), and the head takes [B,1,512]. The encoder of a modality
that is left out is not built.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from tmi.toolkit.config.schema import Config, NetworkConfig
from tmi.toolkit.modality import INPUT_ORDER, MODALITIES
from tmi.toolkit.models.encoders.mlp import RadiomicsEncoder
from tmi.toolkit.models.outputs import Logits
from tmi.toolkit.models.tmi_clnet.fusion import Fusion, feature_widths
from tmi.toolkit.models.tmi_clnet.head import Head
from tmi.toolkit.models.tmi_clnet.tcaf import TripleModalCrossAttention


class SubsetFusion(nn.Module):
    """Features of the encoders of one or two modalities, or the radiomics themselves -> logits."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        fusion = config.fusion
        self.modalities = tuple(m for m in MODALITIES if m in config.modalities)
        self.inputs = tuple(m for m in INPUT_ORDER if m in self.modalities)
        self.radiomics_encoder = RadiomicsEncoder(config.radiomics_encoder) if "radiomics" in self.modalities else None
        widths = feature_widths(config)
        self.projection = nn.ModuleDict({m: nn.Linear(widths[m], fusion.width) for m in self.modalities})
        self.projection_norm = nn.ModuleDict(
            {
                m: nn.LayerNorm(fusion.width, eps=fusion.layer_norm_eps) if fusion.projection_norm else nn.Identity()
                for m in self.modalities
            }
        )
        pair = len(self.modalities) > 1
        self.cross_attention = TripleModalCrossAttention(fusion, self.modalities) if pair else None
        self.head = Head(config.head)

    def forward(self, first: Float[Tensor, "B C1"], second: Float[Tensor, "B C2"] | None = None) -> Logits:
        """Logits [B,K]; the inputs are those of the active modalities in `INPUT_ORDER`."""
        inputs = dict(zip(self.inputs, (first,) if second is None else (first, second), strict=True))
        if self.radiomics_encoder is not None:
            inputs["radiomics"] = self.radiomics_encoder(inputs["radiomics"])
        features = [self.projection_norm[m](self.projection[m](inputs[m])) for m in self.modalities]
        if self.cross_attention is None:
            return Logits(self.head(features[0].unsqueeze(1)))
        return Logits(self.head(self.cross_attention(*features)))


def create_fusion(config: Config) -> Fusion | SubsetFusion:
    """The fusion part of a config: TMI-CLNet's own with all modalities."""
    everything = len(config.network.modalities) == len(MODALITIES)
    return Fusion(config.network) if everything else SubsetFusion(config.network)
