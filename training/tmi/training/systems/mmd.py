"""Fusion of whatever modalities are there: mean of embeddings, modality dropout, reconstruction.

B batch, M modalities in the order of the ring, E width of an embedding.

    e_m = Linear(encoder feature)                             [B,E]
    fused = mean over the modalities present of (Linear, ReLU, Linear, ReLU)(e_m)
    reconstruction = (sum over the modalities available of mean_E (decoder_m(fused) - e_m)^2) / number available
    loss = cross entropy + weight * reconstruction;           logits = Linear, ReLU, Linear of fused

While training, each available modality is kept with probability 0.5 and at least one is. The embedding that is
reconstructed is a constant for the reconstruction's gradient: otherwise embeddings of zero fit best.
Source: C. Cui et al. 2022.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn, stack

from tmi.toolkit.config import CLASSES, MODALITIES, Config, LossConfig
from tmi.training.losses.total import Loss, task_loss
from tmi.training.systems.three_encoders import ThreeEncoders


class MmdOutput(NamedTuple):
    """Logits and the weighted reconstruction error of the batch."""

    logits_BK: Float[Tensor, "B K"]
    reconstruction: Float[Tensor, ""]


class Mmd(nn.Module):
    """CT, text and radiomics, or any subset of them -> `MmdOutput`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        sizes = config.system.mmd
        self.keep_probability = sizes.keep_probability
        self.reconstruction_weight = sizes.reconstruction_weight
        self.encode = ThreeEncoders(config.network)
        wide = sizes.fused
        self.embed = nn.ModuleDict({m: nn.Linear(self.encode.widths[m], sizes.embedding) for m in MODALITIES})
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

    @property
    def ct_encoder(self) -> nn.Module:
        """CT encoder."""
        return self.encode.ct_encoder

    @property
    def text_encoder(self) -> nn.Module:
        """Text encoder."""
        return self.encode.text_encoder

    @property
    def radiomics_encoder(self) -> nn.Module:
        """Radiomics encoder."""
        return self.encode.radiomics_encoder

    def forward(
        self,
        ct: Float[Tensor, "B 1 D H W"],
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"],
        radiomics: Float[Tensor, "B 1781"],
        available_BM: Bool[Tensor, "B M"] | None = None,
    ) -> MmdOutput:
        """Logits from the modalities available; None: all of them.

        Raises:
            ValueError: a case with no modality.
        """
        batch = len(radiomics)
        if available_BM is None:
            available_BM = torch.ones((batch, len(MODALITIES)), dtype=torch.bool, device=radiomics.device)
        elif not bool(available_BM.any(dim=1).all()):
            raise ValueError("a case has no modality")
        features = self.encode(ct, input_ids, attention_mask, radiomics)
        embedded = {m: self.embed[m](features[m]) for m in MODALITIES}
        kept_BM = kept_modalities(available_BM, self.keep_probability) if self.training else available_BM
        each = stack([self.towards[m](embedded[m]) for m in MODALITIES], dim=1)
        # where, not a product: what is not there may be NaN
        each = each.where(kept_BM.unsqueeze(2), 0.0)
        fused = each.sum(dim=1) / kept_BM.sum(dim=1, keepdim=True)
        errors = stack([(self.decode[m](fused) - embedded[m].detach()).square().mean(dim=1) for m in MODALITIES], dim=1)
        missed = errors.where(available_BM, 0.0).sum(dim=1) / available_BM.sum(dim=1)
        return MmdOutput(self.head(fused), self.reconstruction_weight * missed.mean())


def kept_modalities(available_BM: Bool[Tensor, "B M"], probability: float) -> Bool[Tensor, "B M"]:
    """Each available modality with `probability`; where none would be left, one of the available at random."""
    draw = torch.rand(available_BM.shape, device=available_BM.device)
    kept = available_BM & (draw < probability)
    smallest = draw.where(available_BM, 2.0).argmin(dim=1, keepdim=True)
    fallback = torch.zeros_like(available_BM).scatter(1, smallest, True)
    return kept.where(kept.any(dim=1, keepdim=True), fallback)


def loss(output: MmdOutput, labels_B: Int[Tensor, " B"], config: LossConfig) -> Loss:
    """Cross entropy plus the reconstruction, which stands where other systems have the alignment."""
    task = task_loss(output, labels_B, config).task
    return Loss(task + output.reconstruction, task, output.reconstruction)
