"""Configuration of the model to train, and of the baselines that TMI-CLNet is compared with.

All models take the same preprocessed inputs. The encoder sections of `tmi.toolkit.config.schema.NetworkConfig` apply to
every model with deep features. Sources: the table in `docs/systems.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

from tmi.toolkit.errors import UsageError
from tmi.toolkit.model_registry import REFERENCE_MODEL, model_spec, parameters_type
from tmi.toolkit.storage.serialization import from_json

Parameter = bool | int | float | str | tuple[bool | int | float | str, ...]
"""Value of `system.parameters`."""
Parameters = TypeVar("Parameters")


@dataclass(frozen=True, kw_only=True)
class Resnet2dConfig:
    """2D ResNet over axial slices."""

    block: Literal["basic", "bottleneck"] = "bottleneck"
    """Residual block."""
    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    """Blocks in each of the four stages."""
    planes: tuple[int, int, int, int] = (64, 128, 256, 512)
    """Channels of each stage before the expansion of the block (4 for `bottleneck`, 1 for `basic`)."""
    stem_size: int = 7
    """Kernel size of the first convolution (released code: 3)."""
    stem_stride: int = 2
    """Stride of the first convolution (released code: 1)."""
    max_pool: bool = True
    """3x3 max pooling of stride 2 after the first convolution (released code: none)."""

    @property
    def feature_width(self) -> int:
        """Channels of the output feature."""
        return self.planes[-1] * (4 if self.block == "bottleneck" else 1)


@dataclass(frozen=True, kw_only=True)
class VitConfig:
    """Vision transformer on the middle axial slice, or on the volume."""

    patch_DHW: tuple[int, int, int] = (16, 32, 32)
    """Patch size in voxels; the 2D model uses height and width only."""
    width: int = 1024
    """Embedding size of the 2D model."""
    width_3d: int = 768
    """Embedding size of the 3D model."""
    depth: int = 6
    """Number of transformer layers."""
    heads: int = 16
    """Number of attention heads."""
    mlp: int = 2048
    """Hidden size of the feed-forward layer."""
    dropout: float = 0.1
    """Dropout probability."""


@dataclass(frozen=True, kw_only=True)
class RadiomicsModelConfig:
    """Imputation, scaling to [-1, 1], removal of constant features, LASSO selection, then the estimator."""

    trees: int = 500
    """Number of trees of the random forest."""
    svc_c: float = 1.0
    """Penalty parameter C of the support vector machine."""
    inner_folds: int = 5
    """Inner folds, within the training part, that select the LASSO penalty and fit Platt scaling."""


@dataclass(frozen=True, kw_only=True)
class SimpleFfConfig:
    """Features of a 2D ResNet on axial slices, concatenated with the radiomics."""

    slices_of_64: tuple[int, ...] = (28, 30, 32, 34, 36)
    """Indices of the axial slices for a depth of 64, scaled to the depth of the volume."""
    features: int = 8
    """Features per slice, and size of the hidden layer."""

    @property
    def feature_width(self) -> int:
        """Channels of the output feature of all slices."""
        return len(self.slices_of_64) * self.features


@dataclass(frozen=True, kw_only=True)
class HfbsurvConfig:
    """Hierarchical factorised bilinear fusion (HFBSurv)."""

    layers: Literal["separate", "shared"] = "separate"
    """`shared`: one projection of each modality for its own pooling and one for its pairs, one layer for all scores,
    pairs of scored features, as in the source (every preset). `separate`: two projections for each pooling, a score
    layer for each modality, pairs of unscored features, as in earlier versions."""
    embedding: int = 50
    """Embedding size of a modality."""
    pooled: int = 20
    """Output size of the factorised bilinear pooling."""
    rank: int = 20
    """Rank of the factorisation."""
    pooling_dropout: float = 0.1
    """Dropout probability in the pooling."""
    hidden: tuple[int, int] = (256, 64)
    """Hidden sizes of the head."""
    head_dropout: float = 0.3
    """Dropout probability in the head."""


@dataclass(frozen=True, kw_only=True)
class MmdConfig:
    """Fusion of any subset of the modalities (MMD)."""

    embedding: int = 256
    """Embedding size of a modality (32 in the source)."""
    fused: int = 128
    """Size of the fused feature."""
    keep_probability: float = 0.5
    """Probability that an available modality is used in a training step; at least one is always used."""
    reconstruction_weight: float = 1.0
    """Weight of the reconstruction loss."""
    reconstruction: Literal["mean", "sum"] = "mean"
    """Squared error of an embedding: its `sum`, as in the source (every preset), or its `mean` over the width, as in
    earlier versions."""

    def __post_init__(self) -> None:
        if not 0.0 < self.keep_probability <= 1.0:
            raise UsageError(
                f"config: system.mmd.keep_probability={self.keep_probability}", fix="give a probability above 0"
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Model to train, and parameters of the baselines."""

    name: str = REFERENCE_MODEL
    """Name of the model (`tmi.toolkit.model_registry`)."""
    dims: Literal[2, 3] = 2
    """Input of `resnet50` and `vit`: the middle axial slice (2) or the volume (3)."""
    resnet2d: Resnet2dConfig = Resnet2dConfig()
    """2D ResNet of `resnet50` and `simpleff`."""
    vit: VitConfig = VitConfig()
    """Vision transformer of `vit`."""
    radiomics_model: RadiomicsModelConfig = RadiomicsModelConfig()
    """Estimators of `svm` and `rf`; trees and inner folds also apply to `clinical-rf` and `logreg`."""
    simpleff: SimpleFfConfig = SimpleFfConfig()
    """Parameters of `simpleff`."""
    hfbsurv: HfbsurvConfig = HfbsurvConfig()
    """Parameters of `hfbsurv`."""
    mmd: MmdConfig = MmdConfig()
    """Parameters of `mmd`."""
    parameters: Mapping[str, Parameter] = field(default_factory=dict, hash=False)
    """Parameters of a model that another package adds; its row names their dataclass (`parameters_as`)."""

    def __post_init__(self) -> None:
        declared = model_spec(self.name).parameters
        if declared is not None:
            parsed: Any = self.parameters_as(parameters_type(self.name, declared))
            # With their defaults, as the other sections: a later default of the package changes no old run.
            values = {entry.name: getattr(parsed, entry.name) for entry in fields(parsed)}
            object.__setattr__(self, "parameters", values)
        elif self.parameters:
            raise UsageError(
                f"config: system.parameters: model {self.name} has none", fix="remove them, or choose another model"
            )

    def parameters_as(self, kind: type[Parameters]) -> Parameters:
        """The parameters as the dataclass that the model's row names.

        Raises:
            UsageError: an unknown key, or a value of the wrong type.
        """
        return from_json(kind, self.parameters, where="config.system.parameters")
