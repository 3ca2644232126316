"""Base class of all networks: an optional CT encoder, an optional text encoder and a fusion part.

The export partitions the network at the state-dict prefixes `ct_encoder.`, `text_encoder.` and `fusion.`
(`tmi.toolkit.models.registry`). B batch, D H W voxels, T tokens, C channels, K classes.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class MultimodalNetwork(nn.Module):
    """Inputs of all modalities -> output of the fusion part; its first entry is the logits [B,K].

    Args:
        ct: [B,1,D,H,W] -> [B,C]; None: the CT is not used.
        text: ids and mask [B,T] -> [B,C]; None: the text is not used.
        fusion: takes the features of the encoders that exist, in this order, then the scaled radiomics if used.
        radiomics: whether the radiomics are used.
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
        """Output of the fusion part; `available_BM` (`mmd` only) marks the modalities that each case has."""
        inputs: tuple[Tensor, ...] = () if self.ct_encoder is None else (self.ct_encoder(ct),)
        inputs += () if self.text_encoder is None else (self.text_encoder(input_ids, attention_mask),)
        inputs += (radiomics,) if self.uses_radiomics else ()
        options = {} if available_BM is None else {"available_BM": available_BM}
        return self.fusion(*inputs, **options)
