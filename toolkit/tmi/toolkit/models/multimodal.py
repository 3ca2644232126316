"""What all networks have in common: a CT part, a text part and a fusion part, of which the encoders may be absent.

State-dict prefixes `ct_encoder.`, `text_encoder.` and `fusion.` are where the export cuts the graph
(`tmi.toolkit.models.registry`). B batch, D H W voxels, T tokens, C channels, K classes.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class MultimodalNetwork(nn.Module):
    """The inputs of all modalities -> what the fusion part returns; its first entry is the logits [B,K].

    Args:
        ct: [B,1,D,H,W] -> [B,C]; None: the CT is not looked at.
        text: ids and mask [B,T] -> [B,C]; None: the text is not looked at.
        fusion: takes the features of the encoders that are there, then the scaled radiomics where they are seen.
        radiomics: whether they are.
    """

    def __init__(self, *, ct: nn.Module | None, text: nn.Module | None, fusion: nn.Module, radiomics: bool) -> None:
        super().__init__()
        self.ct_encoder = ct
        self.text_encoder = text
        self.fusion = fusion
        self.uses_radiomics = radiomics

    def forward(
        self,
        ct: Float[Tensor, "B 1 D H W"],
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"],
        radiomics: Float[Tensor, "B 1781"],
        available_BM: Bool[Tensor, "B M"] | None = None,
    ) -> Any:
        """The fusion's output; `available_BM` (of `mmd` alone) names the modalities that a case has."""
        given: tuple[Tensor, ...] = () if self.ct_encoder is None else (self.ct_encoder(ct),)
        given += () if self.text_encoder is None else (self.text_encoder(input_ids, attention_mask),)
        given += (radiomics,) if self.uses_radiomics else ()
        more = {} if available_BM is None else {"available_BM": available_BM}
        return self.fusion(*given, **more)
