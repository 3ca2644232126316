"""3D ResNet over the CT volume.

B batch, D H W voxels (depth first), C channels. Stem 7x7x7 with stride (1,2,2), max-pool 3 with stride 2, four residual
stages with shortcut B, global average. With the paper's sizes (64x512x512, ResNet-50) the stages give 256x32x128x128,
512x16x64x64, 1024x8x32x32 and 2048x4x16x16; 46,155,072 parameters. A stage may be dilated instead of strided
(MedicalNet). Blocks: K. He et al. 2016; 3D: K. Hara et al. 2018.
"""

from __future__ import annotations

from jaxtyping import Float
from monai.networks.nets.resnet import ResNet, ResNetBlock, ResNetBottleneck
from torch import Tensor, nn

from tmi.toolkit.config.schema import Config, CtEncoderConfig

BLOCKS = {"basic": ResNetBlock, "bottleneck": ResNetBottleneck}


class CtEncoder(nn.Module):
    """CT volume [B,1,D,H,W] in [0,1] -> feature [B,C]."""

    def __init__(self, config: CtEncoderConfig) -> None:
        super().__init__()
        self.backbone = ResNet(
            block=BLOCKS[config.block],
            layers=list(config.layers),
            block_inplanes=list(config.planes),
            spatial_dims=3,
            n_input_channels=1,
            conv1_t_size=7,
            conv1_t_stride=config.stem_stride_DHW,
            shortcut_type="B",
            feed_forward=False,
            bias_downsample=False,
        )
        for stage, dilation in enumerate(config.dilation, start=1):
            if dilation > 1:
                _dilate(getattr(self.backbone, f"layer{stage}"), dilation)
        width = config.planes[-1] * BLOCKS[config.block].expansion
        self.fc = nn.Linear(width, config.fc_width) if config.fc_width else nn.Identity()

    def forward(self, ct: Float[Tensor, "B 1 D H W"]) -> Float[Tensor, "B C"]:
        """Global average of the last stage, through the fully connected layer if the config has one."""
        feature: Tensor = self.fc(self.backbone(ct))
        return feature


def _dilate(stage: nn.Module, dilation: int) -> None:
    """Stride 1 everywhere in a stage, and dilation in its 3x3x3 convolutions; no weight changes its shape.

    MONAI's ResNet has no option for it. A convolution reads both attributes in `forward`, so setting them is enough.
    """
    for layer in stage.modules():
        if isinstance(layer, nn.Conv3d):
            layer.stride = (1, 1, 1)
            if layer.kernel_size == (3, 3, 3):
                layer.dilation = layer.padding = (dilation,) * 3


def ct_encoder(config: Config) -> CtEncoder:
    """The 3D CT encoder of a config."""
    return CtEncoder(config.network.ct_encoder)
