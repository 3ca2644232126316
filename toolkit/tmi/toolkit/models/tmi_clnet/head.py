"""Classification head: 1D DenseNet over the fused sequence [B,1,L] -> logits [B,2].

`logits`: MONAI's DenseNet (blocks 6,12,24,16, growth 32: DenseNet-121) with one Linear. `released`: as in the authors'
code, transition convolutions 3 wide, no final norm, then Linear 512, ReLU, dropout 0.5, Linear 2 and a sigmoid, whose
outputs the cross entropy takes as logits. Source: G. Huang et al. 2017.
"""

from __future__ import annotations

from jaxtyping import Float
from monai.networks.nets.densenet import DenseNet
from torch import Tensor, nn

from tmi.toolkit.config.schema import CLASSES, HeadConfig


class Head(nn.Module):
    """Fused sequence [B,1,L] -> logits [B,K]."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        released = config.style == "released"
        self.densenet = DenseNet(
            spatial_dims=1,
            in_channels=1,
            out_channels=len(CLASSES),
            init_features=config.init_features,
            growth_rate=config.growth,
            block_config=config.blocks,
        )
        if released:
            self._make_released(config)

    def _make_released(self, config: HeadConfig) -> None:
        features = self.densenet.features
        for index in range(1, len(config.blocks)):
            transition = getattr(features, f"transition{index}")
            narrow = transition.conv
            transition.conv = nn.Conv1d(narrow.in_channels, narrow.out_channels, kernel_size=3, padding=1, bias=False)
            nn.init.kaiming_normal_(transition.conv.weight)
        features.norm5 = nn.Identity()
        width = self.densenet.class_layers.out.in_features
        self.densenet.class_layers.out = nn.Sequential(
            nn.Linear(width, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, len(CLASSES)), nn.Sigmoid()
        )

    def forward(self, fused: Float[Tensor, "B 1 L"]) -> Float[Tensor, "B K"]:
        """Logits; class order as in `tmi.toolkit.config.schema.CLASSES`."""
        logits: Tensor = self.densenet(fused)
        return logits
