"""Triple-modal cross-attention fusion (TCAF), equations (1) and (2) of the paper.

Each modality is a sequence of C tokens of width 1. On the ring clinical -> radiomics -> image -> clinical, modality i
attends to its successor j = i mod 3 + 1 with one head and d_k = 1:

    F_hidden_i = softmax(Q_i K_j^T / sqrt(d_k)) V_j                    [B, C, 1]
    out_i      = W_o,i (F_hidden_i ++ F_i)                             Linear 2 -> 1
    F_global   = out_1 ++ out_2 ++ out_3 over tokens                   [B, 1, 3C]
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, cat, nn

from tmi.toolkit.config.schema import MODALITIES, FusionConfig


class TripleModalCrossAttention(nn.Module):
    """Features [B,C] in the order of the ring -> [B,1,3C]; a ring of two is the two-way attention of the ablation."""

    def __init__(self, config: FusionConfig, ring: tuple[str, ...] = MODALITIES) -> None:
        super().__init__()
        self.ring = ring
        self.query = nn.ModuleDict({m: nn.Linear(1, 1) for m in ring})
        self.key = nn.ModuleDict({m: nn.Linear(1, 1) for m in ring})
        self.value = nn.ModuleDict({m: nn.Linear(1, 1) for m in ring})
        self.output = nn.ModuleDict({m: nn.Linear(2, 1) for m in ring})
        self.dropout = nn.Dropout(config.tcaf_dropout)

    def forward(self, *features: Float[Tensor, "B C"]) -> Float[Tensor, "B 1 L"]:
        """The fused sequence; L is the number of modalities times C."""
        tokens = {m: f.unsqueeze(-1) for m, f in zip(self.ring, features, strict=True)}
        fused = []
        for i, own in enumerate(self.ring):
            other = self.ring[(i + 1) % len(self.ring)]
            # Queries of the modality itself, keys and values of its successor: [B,C,C] scores.
            scores = self.query[own](tokens[own]) @ self.key[other](tokens[other]).transpose(-1, -2)  # d_k = 1
            hidden = self.dropout(scores.softmax(dim=-1)) @ self.value[other](tokens[other])
            fused.append(self.output[own](cat((hidden, tokens[own]), dim=-1)))
        return cat(fused, dim=1).transpose(1, 2)
