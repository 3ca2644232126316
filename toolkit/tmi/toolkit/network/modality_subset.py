"""TMI-CLNet with one or two modalities: the ablation of the paper's Table 2.

One: encoder, projection, head on [B,1,256] ("a direct connection"). Two: both are projected, attend to each other as
the TCAF's modalities do (two-way cross-attention, no IMA), and the head takes [B,1,512]. The encoder of a modality
that is left out is not built.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn

from tmi.toolkit.config import MODALITIES, NetworkConfig
from tmi.toolkit.network.ct_encoder import CtEncoder
from tmi.toolkit.network.head import Head
from tmi.toolkit.network.radiomics_encoder import RadiomicsEncoder
from tmi.toolkit.network.tcaf import TripleModalCrossAttention
from tmi.toolkit.network.text_encoder import TextEncoder


class SubsetOutput(NamedTuple):
    """Logits."""

    logits_BK: Float[Tensor, "B K"]


class ModalitySubset(nn.Module):
    """The inputs of TMI-CLNet, of which it looks at one or two -> `SubsetOutput`."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        fusion = config.fusion
        self.modalities = tuple(m for m in MODALITIES if m in config.modalities)
        self.ct_encoder = CtEncoder(config.ct_encoder) if "image" in self.modalities else None
        self.text_encoder = TextEncoder(config.text_encoder) if "clinical" in self.modalities else None
        self.radiomics_encoder = RadiomicsEncoder(config.radiomics_encoder) if "radiomics" in self.modalities else None
        widths = {
            "clinical": config.text_encoder.hidden_size,
            "radiomics": config.radiomics_encoder.out,
            "image": config.ct_encoder.feature_width,
        }
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

    def forward(
        self,
        ct: Float[Tensor, "B 1 D H W"],
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"],
        radiomics: Float[Tensor, "B 1781"],
    ) -> SubsetOutput:
        """Logits [B,K]."""
        features = []
        for modality in self.modalities:
            if modality == "image":
                feature = self.ct_encoder(ct)  # type: ignore[misc]
            elif modality == "clinical":
                feature = self.text_encoder(input_ids, attention_mask)  # type: ignore[misc]
            else:
                feature = self.radiomics_encoder(radiomics)  # type: ignore[misc]
            features.append(self.projection_norm[modality](self.projection[modality](feature)))
        if self.cross_attention is None:
            return SubsetOutput(self.head(features[0].unsqueeze(1)))
        return SubsetOutput(self.head(self.cross_attention(*features)))
