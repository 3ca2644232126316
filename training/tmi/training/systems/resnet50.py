"""2D ResNet on the middle axial slice, or with `dims` 3 the CT encoder on the whole volume; one Linear to the classes.

B batch, D H W voxels. Source: K. He et al. 2016; in 3D as in `tmi.toolkit.network.ct_encoder`.
"""

from __future__ import annotations

from jaxtyping import Float
from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn

from tmi.toolkit.config import CLASSES, Config
from tmi.toolkit.network.ct_encoder import BLOCKS, CtEncoder
from tmi.toolkit.system_config import Resnet2dConfig
from tmi.training.systems.build import Logits


def resnet2d(config: Resnet2dConfig) -> nn.Module:
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
    )
    return network


class Resnet50(nn.Module):
    """CT -> logits."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.volume = config.system.dims == 3
        if self.volume:
            self.ct_encoder: nn.Module = CtEncoder(config.network.ct_encoder)
            width = config.network.ct_encoder.feature_width
        else:
            self.slice_encoder = resnet2d(config.system.resnet2d)
            width = config.system.resnet2d.feature_width
        self.out = nn.Linear(width, len(CLASSES))

    def forward(
        self, ct: Float[Tensor, "B 1 D H W"], input_ids: Tensor, attention_mask: Tensor, radiomics: Tensor
    ) -> Logits:
        """Logits [B,K]; the other inputs are not looked at."""
        feature = self.ct_encoder(ct) if self.volume else self.slice_encoder(ct[:, :, ct.shape[2] // 2])
        return Logits(self.out(feature))
