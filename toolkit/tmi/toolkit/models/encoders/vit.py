"""Vision transformer on the middle axial slice, or with `dims` 3 on the whole volume; the class token is the feature.

B batch, D H W voxels, P patches, T = P + 1 tokens, C width. Layers: patches by a convolution with stride = kernel,
a class token before them, learned positions, pre-norm transformer layers with GELU, LayerNorm. The attention is written
out, because `nn.TransformerEncoder` uses fused kernels in evaluation that no exporter supports, and initialises every
layer with the same weights.
Source: A. Dosovitskiy et al. 2020.
"""

from __future__ import annotations

import math
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tmi.toolkit.config.baseline_schema import VitConfig
from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import UsageError


class PreNormLayer(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)), on [B,T,C]."""

    def __init__(self, config: VitConfig, width: int) -> None:
        super().__init__()
        self.heads, self.head_width = config.heads, width // config.heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        nn.init.xavier_uniform_(self.query_key_value.weight)
        nn.init.zeros_(self.query_key_value.bias)
        self.attention_dropout = nn.Dropout(config.dropout)
        self.dense = nn.Linear(width, width)
        nn.init.zeros_(self.dense.bias)
        self.dense_dropout = nn.Dropout(config.dropout)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, config.mlp),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.mlp, width),
            nn.Dropout(config.dropout),
        )

    def forward(self, x_BTC: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """Tokens after attention and feed-forward."""
        split = (x_BTC.shape[0], x_BTC.shape[1], self.heads, self.head_width)
        parts = self.query_key_value(self.attention_norm(x_BTC)).chunk(3, dim=-1)
        query, key, value = (part.reshape(split).transpose(1, 2) for part in parts)  # [B,heads,T,C/heads]
        scores = query @ key.transpose(-1, -2) / math.sqrt(self.head_width)
        mixed = (self.attention_dropout(scores.softmax(dim=-1)) @ value).transpose(1, 2).reshape(x_BTC.shape)
        attended = x_BTC + self.dense_dropout(self.dense(mixed))
        output: Tensor = attended + self.feed_forward(attended)
        return output


class VitEncoder(nn.Module):
    """CT volume [B,1,D,H,W] -> feature [B,C].

    Raises:
        UsageError: the patch does not divide the volume, or the heads do not divide the width.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        vit = config.system.vit
        self.volume = config.system.dims == 3
        self.middle = config.ct.shape_DHW[0] // 2
        size: tuple[int, ...] = config.ct.shape_DHW if self.volume else config.ct.shape_DHW[1:]
        patch: tuple[int, ...] = vit.patch_DHW if self.volume else vit.patch_DHW[1:]
        width = vit.width_3d if self.volume else vit.width
        if any(s % p for s, p in zip(size, patch, strict=True)):
            raise UsageError(
                f"vit: patches of {patch} do not divide an input of {size}", fix="set system.vit.patch_DHW"
            )
        if width % vit.heads:
            raise UsageError(f"vit: {vit.heads} heads do not divide a width of {width}", fix="set system.vit.heads")
        convolution: Any = nn.Conv3d if self.volume else nn.Conv2d
        self.patches = convolution(1, width, kernel_size=patch, stride=patch)
        count = prod(s // p for s, p in zip(size, patch, strict=True))
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, count + 1, width), std=0.02))
        self.dropout = nn.Dropout(vit.dropout)
        self.layers = nn.Sequential(*(PreNormLayer(vit, width) for _ in range(vit.depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, ct: Float[Tensor, "B 1 D H W"]) -> Float[Tensor, "B C"]:
        """The class token of the last layer."""
        patches_BPC = self.patches(ct if self.volume else ct[:, :, self.middle]).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.class_token.expand(ct.shape[0], -1, -1), patches_BPC), dim=1)
        feature: Tensor = self.norm(self.layers(self.dropout(tokens + self.positions)))[:, 0]
        return feature
