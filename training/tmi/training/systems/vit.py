"""Vision transformer on the middle axial slice, or with `dims` 3 on the whole volume; a class token and one Linear.

B batch, D H W voxels, P patches, C width. Patches by a convolution of their own stride, a class token before them,
learned positions, pre-norm transformer layers with GELU, LayerNorm. Source: A. Dosovitskiy et al. 2020; torch's
layers.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tmi.toolkit.config import CLASSES, Config
from tmi.toolkit.errors import UsageError
from tmi.training.systems.build import Logits


class Vit(nn.Module):
    """CT -> logits.

    Raises:
        UsageError: the patch does not divide the volume, or the heads not the width.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        vit = config.system.vit
        self.volume = config.system.dims == 3
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
        layer = nn.TransformerEncoderLayer(
            width, vit.heads, vit.mlp, vit.dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, vit.depth, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.out = nn.Linear(width, len(CLASSES))

    def forward(
        self, ct: Float[Tensor, "B 1 D H W"], input_ids: Tensor, attention_mask: Tensor, radiomics: Tensor
    ) -> Logits:
        """Logits [B,K]; the other inputs are not looked at."""
        patches_BPC = self.patches(ct if self.volume else ct[:, :, ct.shape[2] // 2]).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.class_token.expand(len(ct), -1, -1), patches_BPC), dim=1)
        mixed = self.layers(self.dropout(tokens + self.positions))
        return Logits(self.out(mixed[:, 0]))
