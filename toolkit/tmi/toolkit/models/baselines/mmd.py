"""Fusion of the modalities that are available: mean of embeddings, modality dropout, reconstruction.

B batch, M modalities in the order of the ring, E width of an embedding.

    e_m = Linear(encoder feature)                             [B,E]
    fused = mean over the modalities present of (Linear, ReLU, Linear, ReLU)(e_m)
    reconstruction = (sum over the modalities available of sum_E (decoder_m(fused) - e_m)^2) / number available
    logits = Linear, ReLU, Linear of fused

During training each available modality is kept with probability 0.5; at least one is kept. The embedding is detached as
the target of the reconstruction: otherwise embeddings of zero would minimise the loss. Earlier versions took the mean
over E instead of the sum (`system.mmd.reconstruction`).
Source: C. Cui et al. 2022.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn, stack

from tmi.toolkit.config.schema import CLASSES, MODALITIES, Config
from tmi.toolkit.models.encoders.mlp import RadiomicsEncoder
from tmi.toolkit.models.tmi_clnet.fusion import feature_widths


class MmdOutput(NamedTuple):
    """Logits and the weighted reconstruction error of the batch."""

    logits_BK: Float[Tensor, "B K"]
    reconstruction: Float[Tensor, ""]


class MmdFusion(nn.Module):
    """CT and text features and radiomics, or any subset of them -> `MmdOutput`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        sizes = config.system.mmd
        self.keep_probability = sizes.keep_probability
        self.reconstruction_weight = sizes.reconstruction_weight
        if sizes.reconstruction == "mean":
            self.reconstruction_weight /= sizes.embedding
        self.radiomics_encoder = RadiomicsEncoder(config.network.radiomics_encoder)
        widths = feature_widths(config.network)
        wide = sizes.fused
        self.embed = nn.ModuleDict({m: nn.Linear(widths[m], sizes.embedding) for m in MODALITIES})
        self.towards = nn.ModuleDict(
            {
                m: nn.Sequential(nn.Linear(sizes.embedding, wide), nn.ReLU(), nn.Linear(wide, wide), nn.ReLU())
                for m in MODALITIES
            }
        )
        self.decode = nn.ModuleDict(
            {m: nn.Sequential(nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, sizes.embedding)) for m in MODALITIES}
        )
        self.head = nn.Sequential(nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, len(CLASSES)))

    def forward(
        self,
        ct_features: Float[Tensor, "B C_ct"],
        text_features: Float[Tensor, "B C_text"],
        radiomics: Float[Tensor, "B 1781"],
        available_BM: Bool[Tensor, "B M"] | None = None,
    ) -> MmdOutput:
        """Logits from the modalities available; None: all of them.

        Raises:
            ValueError: a case with no modality.
        """
        if available_BM is None:
            available_BM = torch.ones_like(radiomics[:, : len(MODALITIES)], dtype=torch.bool)
        elif not bool(available_BM.any(dim=1).all()):
            raise ValueError("a case has no modality")
        features = {"clinical": text_features, "radiomics": self.radiomics_encoder(radiomics), "image": ct_features}
        embedded = {m: self.embed[m](features[m]) for m in MODALITIES}
        kept_BM = kept_modalities(available_BM, self.keep_probability) if self.training else available_BM
        each = stack([self.towards[m](embedded[m]) for m in MODALITIES], dim=1)
        # `where` instead of a product: a modality that is not available may be NaN.
        each = each.where(kept_BM.unsqueeze(2), 0.0)
        fused = each.sum(dim=1) / kept_BM.sum(dim=1, keepdim=True)
        errors = stack([(self.decode[m](fused) - embedded[m].detach()).square().sum(dim=1) for m in MODALITIES], dim=1)
        missed = errors.where(available_BM, 0.0).sum(dim=1) / available_BM.sum(dim=1)
        return MmdOutput(self.head(fused), self.reconstruction_weight * missed.mean())


def kept_modalities(available_BM: Bool[Tensor, "B M"], probability: float) -> Bool[Tensor, "B M"]:
    """Keep each available modality with `probability`; if none is left, keep one of the available at random."""
    draw = torch.rand(available_BM.shape, device=available_BM.device)
    kept = available_BM & (draw < probability)
    smallest = draw.where(available_BM, 2.0).argmin(dim=1, keepdim=True)
    fallback = torch.zeros_like(available_BM).scatter(1, smallest, True)
    return kept.where(kept.any(dim=1, keepdim=True), fallback)
