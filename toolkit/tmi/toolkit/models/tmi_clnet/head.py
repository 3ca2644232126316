"""Classification head: 1D DenseNet over the fused sequence [B,1,L] -> logits [B,2].

`logits`: MONAI's DenseNet (blocks 6,12,24,16, growth 32: DenseNet-121) with one Linear. `released`: as in the authors'
code, convolutions with biases, transition convolutions 3 wide, no final norm and no ReLU before the pooling, then
Linear 512, ReLU, dropout 0.5, Linear 2 and a sigmoid, whose outputs the cross entropy takes as logits. At full size it
has 7,429,762 parameters, as the authors' has. Source: G. Huang et al. 2017.

Earlier versions built `released` without the biases and with the ReLU. A head takes that form when it loads weights
without convolution biases, so that runs and bundles of these versions give the outputs that they were trained for.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from monai.networks.nets.densenet import DenseNet
from torch import Tensor, nn

from tmi.toolkit.config.schema import CLASSES, HeadConfig


class Head(nn.Module):
    """Fused sequence [B,1,L] -> logits [B,K]."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.released = config.style == "released"
        self.densenet = DenseNet(
            spatial_dims=1,
            in_channels=1,
            out_channels=len(CLASSES),
            init_features=config.init_features,
            growth_rate=config.growth,
            block_config=config.blocks,
        )
        if self.released:
            self._make_released(config)

    def _make_released(self, config: HeadConfig) -> None:
        features = self.densenet.features
        for index in range(1, len(config.blocks)):
            transition = getattr(features, f"transition{index}")
            narrow = transition.conv
            transition.conv = nn.Conv1d(narrow.in_channels, narrow.out_channels, kernel_size=3, padding=1, bias=False)
            nn.init.kaiming_normal_(transition.conv.weight)
        for convolution in self._convolutions():
            # torch's default initialisation of a bias: uniform in +-1 / sqrt(fan in)
            bound = convolution.weight[0].numel() ** -0.5
            bias = convolution.weight.new_empty(convolution.out_channels)
            convolution.bias = nn.Parameter(nn.init.uniform_(bias, -bound, bound))
        features.norm5 = nn.Identity()
        self.densenet.class_layers.relu = nn.Identity()
        width = self.densenet.class_layers.out.in_features
        self.densenet.class_layers.out = nn.Sequential(
            nn.Linear(width, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, len(CLASSES)), nn.Sigmoid()
        )

    def _convolutions(self) -> list[nn.Conv1d]:
        return [module for module in self.densenet.modules() if isinstance(module, nn.Conv1d)]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the form of earlier versions if the weights are of that form; called before the layers load theirs."""
        stem = f"{prefix}densenet.features.conv0"
        if self.released and f"{stem}.weight" in state_dict and f"{stem}.bias" not in state_dict:
            for convolution in self._convolutions():
                convolution.bias = None
            self.densenet.class_layers.relu = nn.ReLU()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, fused: Float[Tensor, "B 1 L"]) -> Float[Tensor, "B K"]:
        """Logits; class order as in `tmi.toolkit.config.schema.CLASSES`."""
        logits: Tensor = self.densenet(fused)
        return logits
