"""Intra-modality aggregation (IMA): post-norm multi-head self-attention on one token per modality.

    y = LayerNorm(x + Dropout(Dense(SelfAttention(x))))        x: [B, 1, C], 16 heads

With one token the softmax runs over one score and is constantly 1, so W_q and W_k get no gradient and have no effect.
This follows from the paper's own shapes. Source: the paper, section 2.1; J. Devlin et al. 2019 for the block.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor, nn

from tmi.toolkit.config.schema import FusionConfig


class IntraModalityAggregation(nn.Module):
    """[B,T,C] -> [B,T,C]; the network calls it with T = 1."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.heads = config.ima_heads
        self.head_width = config.width // config.ima_heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.attention_dropout = nn.Dropout(config.ima_attention_dropout)
        self.dense = nn.Linear(config.width, config.width)
        self.dense_dropout = nn.Dropout(config.ima_dense_dropout)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)

    def forward(self, x_BTC: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """Aggregated tokens."""
        split = (x_BTC.shape[0], x_BTC.shape[1], self.heads, self.head_width)
        query, key, value = (f(x_BTC).reshape(split).transpose(1, 2) for f in (self.query, self.key, self.value))
        scores = query @ key.transpose(-1, -2) / math.sqrt(self.head_width)
        weights = self.attention_dropout(scores.softmax(dim=-1))
        mixed = (weights @ value).transpose(1, 2).reshape(x_BTC.shape)
        normed: Tensor = self.norm(x_BTC + self.dense_dropout(self.dense(mixed)))
        return normed
