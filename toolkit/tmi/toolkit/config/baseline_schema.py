"""Which system is trained, and the sizes of those that TMI-CLNet is compared with.

Every system takes the same prepared inputs, so the sections of CT, text and radiomics encoder in
`tmi.toolkit.config.schema.NetworkConfig` hold for all that use deep features. Sources: the table in `docs/systems.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tmi.toolkit.errors import UsageError

ModelName = Literal["tmi-clnet", "resnet50", "vit", "svm", "rf", "simpleff", "hfbsurv", "mmd", "logreg", "clinical-rf"]
"""Names of the systems; `tmi.training.systems.registry` says what each is."""


@dataclass(frozen=True, kw_only=True)
class Resnet2dConfig:
    """2D ResNet over axial slices."""

    block: Literal["basic", "bottleneck"] = "bottleneck"
    """Residual block."""
    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    """Blocks in each of the four stages."""
    planes: tuple[int, int, int, int] = (64, 128, 256, 512)
    """Channels of each stage before the block's expansion (4 for `bottleneck`, 1 for `basic`)."""
    stem_size: int = 7
    """Width of the first convolution (released: 3)."""
    stem_stride: int = 2
    """Its stride (released: 1)."""

    @property
    def feature_width(self) -> int:
        """Channels of the feature."""
        return self.planes[-1] * (4 if self.block == "bottleneck" else 1)


@dataclass(frozen=True, kw_only=True)
class VitConfig:
    """Vision transformer over the middle slice, or over the volume."""

    patch_DHW: tuple[int, int, int] = (16, 32, 32)
    """Voxels of a patch; the middle slice takes the last two."""
    width: int = 1024
    """Width of a token in 2D."""
    width_3d: int = 768
    """Width of a token in 3D."""
    depth: int = 6
    """Transformer layers."""
    heads: int = 16
    """Attention heads."""
    mlp: int = 2048
    """Width of the feed-forward layer."""
    dropout: float = 0.1
    """Dropout."""


@dataclass(frozen=True, kw_only=True)
class RadiomicsModelConfig:
    """Impute, scale to [-1, 1], drop constants, select by LASSO; then the estimator."""

    trees: int = 500
    """Trees of the random forest."""
    svc_c: float = 1.0
    """Penalty of the support vector machine."""
    inner_folds: int = 5
    """Folds, inside the training part, of the LASSO's penalty and of Platt's scaling."""


@dataclass(frozen=True, kw_only=True)
class SimpleFfConfig:
    """Slices through a 2D ResNet, beside the radiomics."""

    slices_of_64: tuple[int, ...] = (28, 30, 32, 34, 36)
    """Axial slices, counted on a depth of 64 and scaled to the volume's own."""
    features: int = 8
    """Features of a slice, and width of the hidden layer."""


@dataclass(frozen=True, kw_only=True)
class HfbsurvConfig:
    """Hierarchical factorised bilinear fusion."""

    embedding: int = 50
    """Width of a modality."""
    pooled: int = 20
    """Width after the factorised bilinear pooling."""
    rank: int = 20
    """Its rank."""
    pooling_dropout: float = 0.1
    """Dropout inside the pooling."""
    hidden: tuple[int, int] = (256, 64)
    """Widths of the head."""
    head_dropout: float = 0.3
    """Dropout inside the head."""


@dataclass(frozen=True, kw_only=True)
class MmdConfig:
    """Fusion that takes any subset of the modalities."""

    embedding: int = 256
    """Width of a modality's embedding (32 in the source)."""
    fused: int = 128
    """Width of the fused feature."""
    keep_probability: float = 0.5
    """How likely an available modality is kept in a training step; at least one always is."""
    reconstruction_weight: float = 1.0
    """Weight of the reconstruction in the loss."""

    def __post_init__(self) -> None:
        if not 0.0 < self.keep_probability <= 1.0:
            raise UsageError(
                f"config: system.mmd.keep_probability={self.keep_probability}", fix="give a probability above 0"
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The system and the sizes of the systems compared."""

    name: ModelName = "tmi-clnet"
    """What is trained."""
    dims: Literal[2, 3] = 2
    """`resnet50` and `vit`: the middle axial slice (2), or the volume (3)."""
    resnet2d: Resnet2dConfig = Resnet2dConfig()
    """2D ResNet of `resnet50` and `simpleff`."""
    vit: VitConfig = VitConfig()
    """`vit`."""
    radiomics_model: RadiomicsModelConfig = RadiomicsModelConfig()
    """`svm` and `rf`; its trees and inner folds hold for `clinical-rf` and `logreg` too."""
    simpleff: SimpleFfConfig = SimpleFfConfig()
    """`simpleff`."""
    hfbsurv: HfbsurvConfig = HfbsurvConfig()
    """`hfbsurv`."""
    mmd: MmdConfig = MmdConfig()
    """`mmd`."""
