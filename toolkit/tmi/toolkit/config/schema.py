"""Configuration of preprocessing, network, losses and training, as frozen, keyword-only dataclasses.

Values are validated on construction. Presets (`tmi.toolkit.config.presets`) return a complete `Config`; configuration
files are data and are never evaluated (`tmi.toolkit.storage.serialization`). Axes: D depth, H height, W width. Defaults
are those of the paper; `docs/decisions.md` lists the ones that the paper does not state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tmi.toolkit.config.baseline_schema import ModelConfig
from tmi.toolkit.config.training_schema import AugmentationConfig as AugmentationConfig
from tmi.toolkit.config.training_schema import LossConfig as LossConfig
from tmi.toolkit.config.training_schema import TrainConfig as TrainConfig
from tmi.toolkit.config.training_schema import require
from tmi.toolkit.modality import MODALITIES as MODALITIES
from tmi.toolkit.modality import Modality as Modality

CLASSES: tuple[str, str] = ("good", "bad")
"""Class names by index. The positive class of every metric is `bad` (bad prognosis)."""
POSITIVE: int = 1
"""Index of the positive class in `CLASSES`."""
N_RADIOMICS: int = 1781
"""Number of radiomic features of the network input."""


@dataclass(frozen=True, kw_only=True)
class CtConfig:
    """Preprocessing of the CT volume."""

    shape_DHW: tuple[int, int, int]
    """Input size (D, H, W) in voxels; the whole volume is resampled to it."""
    window_hu: tuple[float, float] = (-70.0, 130.0)
    """Lower and upper end of the intensity window in HU (level 30, width 200)."""
    scale_to: tuple[float, float] = (0.0, 1.0)
    """Values that the two ends of the window are mapped to."""
    depth_resampling: Literal["linear", "nearest"] = "linear"
    """Interpolation along depth; in-plane interpolation is always linear."""
    antialias: bool = False
    """Average the input over each output voxel's extent along every axis that shrinks, instead of interpolating between
    the two nearest voxels, which ignores the others and keeps their noise. Off in every preset (paper)."""

    def __post_init__(self) -> None:
        require(
            len(self.shape_DHW) == 3 and min(self.shape_DHW) >= 8,
            f"ct.shape_DHW={self.shape_DHW}",
            "give three sizes of at least 8 voxels, depth first",
        )
        require(self.window_hu[0] < self.window_hu[1], f"ct.window_hu={self.window_hu}", "give the lower end first")
        require(self.scale_to[0] < self.scale_to[1], f"ct.scale_to={self.scale_to}", "give the lower end first")
        require(
            not (self.antialias and self.depth_resampling == "nearest"),
            "ct.antialias with ct.depth_resampling=nearest, which copies slices",
            "set ct.depth_resampling=linear",
        )


@dataclass(frozen=True, kw_only=True)
class RadiomicsConfig:
    """Scaling of the radiomic features."""

    scaling: Literal["minmax", "zscore"] = "minmax"
    """`minmax`: to [-1, 1] by minimum and maximum, clipped; `zscore`: zero mean, unit variance, not clipped."""
    fit_on: Literal["training", "cohort"] = "training"
    """`training`: fitted on the training part of the fold. `cohort`: fitted on all cases, held-out ones
    included, which is leakage (released protocol)."""


@dataclass(frozen=True, kw_only=True)
class ClinicalConfig:
    """Rendering of the clinical fields as text, and tokenization."""

    rendering: Literal["compact", "values", "flags", "pairs"] = "values"
    """`compact`: short names and values, the most important first (`paper`, `tiny`); `values`: one sentence per field
    with name, value and unit; `flags`: the same with low/normal/high; `pairs`: names and values joined by spaces
    (released protocol)."""
    max_length: int = 512
    """Maximum number of tokens, special tokens included; longer texts are truncated and reported."""
    pad_to_max: bool = False
    """Pad to `max_length` (released protocol) instead of to the longest text of the batch."""
    vocab_size: int | None = None
    """Size of the WordPiece vocabulary that is trained on the training texts; None: an existing tokenizer is used."""

    def __post_init__(self) -> None:
        require(8 <= self.max_length <= 512, f"clinical.max_length={self.max_length}", "give 8 to 512 tokens")


@dataclass(frozen=True, kw_only=True)
class CtEncoderConfig:
    """3D ResNet with one input channel, 7x7x7 stem, 3x3x3 max pooling of stride 2, projection shortcuts (type B) and
    global average pooling.
    """

    block: Literal["basic", "bottleneck"] = "bottleneck"
    """Residual block."""
    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    """Blocks in each of the four stages."""
    planes: tuple[int, int, int, int] = (64, 128, 256, 512)
    """Channels of each stage before the expansion of the block (4 for `bottleneck`, 1 for `basic`)."""
    stem_stride_DHW: tuple[int, int, int] = (1, 2, 2)
    """Stride of the first convolution."""
    dilation: tuple[int, int, int, int] = (1, 1, 1, 1)
    """Dilation of the 3x3x3 convolutions of each stage; a dilated stage has stride 1 (MedicalNet: 1, 1, 2, 4)."""
    fc_width: int | None = None
    """Size of a fully connected output layer (released code: 400); None: the output is the global average."""

    @property
    def feature_width(self) -> int:
        """Channels of the output feature."""
        return self.fc_width or self.planes[-1] * (4 if self.block == "bottleneck" else 1)

    def __post_init__(self) -> None:
        require(
            min(self.dilation) >= 1,
            f"ct_encoder.dilation={self.dilation}",
            "give four integers of at least 1, one per stage",
        )


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    """BERT encoder. A tokenizer that is trained on the cohort determines the vocabulary size."""

    hidden_size: int = 768
    """Hidden size."""
    layers: int = 12
    """Number of transformer layers."""
    heads: int = 12
    """Number of attention heads."""
    intermediate_size: int = 3072
    """Hidden size of the feed-forward layer."""
    vocab_size: int = 28996
    """Rows of the embedding table."""
    pooling: Literal["mean", "cls", "pooler"] = "mean"
    """`mean`: mean of the attended tokens of the last layer; `cls`: its first token; `pooler`: the pooler of BERT."""
    dropout: float = 0.1
    """Dropout probability of hidden states and attention weights, as in the pre-training of BERT. For random initial
    weights and a few hundred records, 0 lets the encoder fit the training texts, but does not generalize better
    (docs/results)."""

    def __post_init__(self) -> None:
        require(
            self.heads >= 1 and self.hidden_size % self.heads == 0,
            f"text_encoder.hidden_size={self.hidden_size}",
            f"make it a multiple of the {self.heads} heads",
        )
        require(0.0 <= self.dropout < 1.0, f"text_encoder.dropout={self.dropout}", "give 0 or more, and less than 1")


@dataclass(frozen=True, kw_only=True)
class RadiomicsEncoderConfig:
    """MLP: Linear without bias, BatchNorm, ReLU, Linear without bias."""

    hidden: int = 1024
    """Size of the hidden layer."""
    out: int = 512
    """Size of the output feature."""


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """Projections, intra-modality aggregation (IMA) and triple-modal cross-attention fusion (TCAF)."""

    width: int = 256
    """Size of each modality's feature after its projection."""
    projection_norm: bool = True
    """LayerNorm after each projection."""
    layer_norm_eps: float = 1e-5
    """Epsilon of every LayerNorm of the fusion; 1e-12 underflows to zero in FP16."""
    ima: bool = True
    """Use the intra-modality aggregation; if off, it is the identity."""
    ima_heads: int = 16
    """Heads of the self-attention in the IMA."""
    ima_attention_dropout: float = 0.5
    """Dropout probability of the attention weights in the IMA."""
    ima_dense_dropout: float = 0.2
    """Dropout probability after the dense layer of the IMA."""
    tcaf: bool = True
    """Use the triple-modal cross-attention fusion; if off, the three features are concatenated."""
    tcaf_dropout: float = 0.0
    """Dropout probability of the attention weights in the TCAF."""

    def __post_init__(self) -> None:
        require(
            self.ima_heads >= 1 and self.width % self.ima_heads == 0,
            f"fusion.width={self.width}",
            f"make it a multiple of the {self.ima_heads} heads",
        )


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """1D DenseNet on the fused sequence (B, 1, 3 * width)."""

    blocks: tuple[int, ...] = (6, 12, 24, 16)
    """Number of layers of each dense block."""
    growth: int = 32
    """Growth rate."""
    init_features: int = 64
    """Channels of the stem."""
    style: Literal["logits", "released"] = "logits"
    """`logits`: one Linear to the two classes. `released`: Linear 512, ReLU, dropout 0.5, Linear 2, sigmoid, with
    biases in every convolution, transition convolutions of size 3, no final norm and no ReLU before the pooling."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Architecture of the network."""

    ct_encoder: CtEncoderConfig = CtEncoderConfig()
    """CT encoder."""
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    """Clinical text encoder."""
    radiomics_encoder: RadiomicsEncoderConfig = RadiomicsEncoderConfig()
    """Radiomics encoder."""
    fusion: FusionConfig = FusionConfig()
    """Projections, IMA, TCAF."""
    head: HeadConfig = HeadConfig()
    """Classification head."""
    modalities: tuple[Modality, ...] = MODALITIES
    """Active modalities of TMI-CLNet, in any order. Three give the network of the paper. Two (two-way cross-attention,
    no IMA) and one (encoder, projection, head) are its modality ablations."""

    def __post_init__(self) -> None:
        named = set(self.modalities)
        require(
            0 < len(named) == len(self.modalities) and named <= set(MODALITIES),
            f"network.modalities={list(self.modalities)}",
            f"name one, two or three of {', '.join(MODALITIES)}, each once",
        )


@dataclass(frozen=True, kw_only=True)
class Config:
    """Complete configuration; stored in every run and bundle."""

    preset: str
    """Name of the preset that it is based on."""
    ct: CtConfig
    """CT preprocessing."""
    radiomics: RadiomicsConfig = RadiomicsConfig()
    """Scaling of the radiomic features."""
    clinical: ClinicalConfig = ClinicalConfig()
    """Clinical text and tokens."""
    network: NetworkConfig = NetworkConfig()
    """Network architecture."""
    system: ModelConfig = field(default_factory=ModelConfig)
    """Model to train: TMI-CLNet or a baseline."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Loss weights."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimisation and evaluation protocol."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    """Augmentation of the training CTs."""

    def __post_init__(self) -> None:
        if self.clinical.vocab_size is not None:
            require(
                self.clinical.vocab_size <= self.network.text_encoder.vocab_size,
                f"clinical.vocab_size={self.clinical.vocab_size} exceeds "
                f"network.text_encoder.vocab_size={self.network.text_encoder.vocab_size}",
                "make the embedding table at least as large as the vocabulary",
            )
