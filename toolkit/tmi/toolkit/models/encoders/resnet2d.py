"""2D ResNet over the middle axial slice of the CT.

B batch, D H W voxels, C channels. Source: K. He et al. 2016; the 3D one is `tmi.toolkit.models.encoders.resnet3d`.
"""

from __future__ import annotations

from jaxtyping import Float
from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn

from tmi.toolkit.config.baseline_schema import Resnet2dConfig
from tmi.toolkit.config.schema import Config
from tmi.toolkit.models.encoders.resnet3d import BLOCKS


def create_resnet2d(config: Resnet2dConfig) -> nn.Module:
    """Slice [B,1,H,W] -> feature [B,C] (global average)."""
    network: nn.Module = ResNet(
        block=BLOCKS[config.block],
        layers=list(config.layers),
        block_inplanes=list(config.planes),
        spatial_dims=2,
        n_input_channels=1,
        conv1_t_size=config.stem_size,
        conv1_t_stride=config.stem_stride,
        shortcut_type="B",
        feed_forward=False,
        bias_downsample=False,
        no_max_pool=not config.max_pool,
    )
    return network


class SliceEncoder(nn.Module):
    """CT volume [B,1,D,H,W] -> feature [B,C] of its middle axial slice."""

    def __init__(self, config: Resnet2dConfig, *, depth: int) -> None:
        super().__init__()
        self.middle = depth // 2
        self.backbone = create_resnet2d(config)

    def forward(self, ct: Float[Tensor, "B 1 D H W"]) -> Float[Tensor, "B C"]:
        """Feature [B,C] of slice D // 2."""
        feature: Tensor = self.backbone(ct[:, :, self.middle])
        return feature


def slice_encoder(config: Config) -> SliceEncoder:
    """The encoder of the middle slice of a config."""
    return SliceEncoder(config.system.resnet2d, depth=config.ct.shape_DHW[0])
