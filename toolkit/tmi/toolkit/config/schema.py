"""The whole configuration as frozen, keyword-only dataclasses, validated on construction.

A preset (`tmi.toolkit.config.presets`) is a function that returns a whole `Config`. A file is data and is never
evaluated (`tmi.toolkit.storage.serialization`). Axes: D depth, H height, W width. Source of the defaults: the paper
where it speaks, else `docs/decisions.md`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from tmi.toolkit.config.baseline_schema import ModelConfig
from tmi.toolkit.errors import UsageError

CLASSES: tuple[str, str] = ("good", "bad")
"""Class names by index. Positive, for every metric, is `bad` (bad prognosis)."""
POSITIVE: int = 1
"""Index of the positive class in `CLASSES`."""
FREEZABLE = re.compile(r"ct(:stem|:layer[1-4])?|text(:\d+)?|radiomics")
"""What `train.freeze` may name."""
N_RADIOMICS: int = 1781
"""Number of radiomic features the network takes."""
Modality = Literal["clinical", "radiomics", "image"]
"""A modality, as the configs name it."""
MODALITIES: tuple[Modality, Modality, Modality] = ("clinical", "radiomics", "image")
"""The ring of the cross-attention, in order; each attends to the next, the last to the first."""


def _require(holds: bool, what: str, fix: str) -> None:
    if not holds:
        raise UsageError(f"config: {what}", fix=fix)


@dataclass(frozen=True, kw_only=True)
class CtConfig:
    """How a CT volume becomes the network's input."""

    shape_DHW: tuple[int, int, int]
    """Voxels of the input, depth first; the whole volume is resampled to it."""
    window_hu: tuple[float, float] = (-70.0, 130.0)
    """Lower and upper end of the intensity window in Hounsfield units (level 30, width 200)."""
    scale_to: tuple[float, float] = (0.0, 1.0)
    """What the window's two ends become."""
    depth_resampling: Literal["linear", "nearest"] = "linear"
    """Interpolation along depth; in plane it is always linear."""

    def __post_init__(self) -> None:
        _require(
            len(self.shape_DHW) == 3 and min(self.shape_DHW) >= 8,
            f"ct.shape_DHW={self.shape_DHW}",
            "give three sizes of at least 8 voxels, depth first",
        )
        _require(self.window_hu[0] < self.window_hu[1], f"ct.window_hu={self.window_hu}", "give the lower end first")
        _require(self.scale_to[0] < self.scale_to[1], f"ct.scale_to={self.scale_to}", "give the lower end first")


@dataclass(frozen=True, kw_only=True)
class RadiomicsConfig:
    """How radiomic features are scaled."""

    scaling: Literal["minmax", "zscore"] = "minmax"
    """`minmax`: to [-1, 1] by minimum and maximum, clipped; `zscore`: zero mean, unit variance, not clipped."""
    fit_on: Literal["training", "cohort"] = "training"
    """`training`: the training part of the fold alone. `cohort` leaks the held-out cases (the released protocol)."""


@dataclass(frozen=True, kw_only=True)
class ClinicalConfig:
    """How clinical fields become text and tokens."""

    rendering: Literal["values", "flags", "pairs"] = "values"
    """`values`: a sentence a field, name and value with unit; `flags`: the same plus low/normal/high; `pairs`: names
    and values joined by spaces (released protocol)."""
    max_length: int = 512
    """Longest token sequence, special tokens included; longer texts are cut and reported."""
    pad_to_max: bool = False
    """Always pad to `max_length` (released protocol) instead of to the longest text of the batch."""
    vocab_size: int | None = None
    """Size of the WordPiece vocabulary trained on the training texts; None: a tokenizer is given."""

    def __post_init__(self) -> None:
        _require(8 <= self.max_length <= 512, f"clinical.max_length={self.max_length}", "give 8 to 512 tokens")


@dataclass(frozen=True, kw_only=True)
class CtEncoderConfig:
    """3D ResNet: one channel, stem 7x7x7 with stride (1,2,2), max-pool 3 stride 2, shortcut B, global average."""

    block: Literal["basic", "bottleneck"] = "bottleneck"
    """Residual block."""
    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    """Blocks in each of the four stages."""
    planes: tuple[int, int, int, int] = (64, 128, 256, 512)
    """Channels of each stage before the block's expansion (4 for `bottleneck`, 1 for `basic`)."""
    stem_stride_DHW: tuple[int, int, int] = (1, 2, 2)
    """Stride of the first convolution."""
    dilation: tuple[int, int, int, int] = (1, 1, 1, 1)
    """Dilation of each stage's 3x3x3 convolutions; a dilated stage has stride 1 (MedicalNet: 1, 1, 2, 4)."""
    fc_width: int | None = None
    """Width of a fully connected layer whose output is the feature (released: 400); None: the global average."""

    @property
    def feature_width(self) -> int:
        """Channels of the feature that leaves the encoder."""
        return self.fc_width or self.planes[-1] * (4 if self.block == "bottleneck" else 1)

    def __post_init__(self) -> None:
        _require(
            min(self.dilation) >= 1,
            f"ct_encoder.dilation={self.dilation}",
            "give four whole numbers from 1 on, one a stage",
        )


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    """BERT. The vocabulary size is the tokenizer's where the tokenizer is trained on the cohort."""

    hidden_size: int = 768
    """Width of a token."""
    layers: int = 12
    """Transformer layers."""
    heads: int = 12
    """Attention heads."""
    intermediate_size: int = 3072
    """Width of the feed-forward layer."""
    vocab_size: int = 28996
    """Rows of the embedding table."""
    pooling: Literal["mean", "cls", "pooler"] = "mean"
    """`mean` over the attended tokens of the last layer, its first token, or BERT's pooler."""
    dropout: float = 0.1
    """Dropout of BERT's hidden states and attention weights, as it was pre-trained. From random weights on a few
    hundred records, 0 lets the encoder fit its training texts, not more than that (docs/results)."""

    def __post_init__(self) -> None:
        _require(
            self.hidden_size % self.heads == 0,
            f"text_encoder.hidden_size={self.hidden_size}",
            f"make it a multiple of the {self.heads} heads",
        )
        _require(0.0 <= self.dropout < 1.0, f"text_encoder.dropout={self.dropout}", "give 0 or more, and less than 1")


@dataclass(frozen=True, kw_only=True)
class RadiomicsEncoderConfig:
    """Linear without bias, BatchNorm, ReLU, Linear without bias."""

    hidden: int = 1024
    """Width of the hidden layer."""
    out: int = 512
    """Width of the feature."""


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """Projections, intra-modality aggregation (IMA) and triple-modal cross-attention fusion (TCAF)."""

    width: int = 256
    """Width of each modality after its projection."""
    projection_norm: bool = True
    """LayerNorm after each projection."""
    layer_norm_eps: float = 1e-5
    """Epsilon of every LayerNorm here; 1e-12 flushes to zero in FP16."""
    ima: bool = True
    """Intra-modality aggregation; off: identity."""
    ima_heads: int = 16
    """Heads of the IMA's self-attention."""
    ima_attention_dropout: float = 0.5
    """Dropout on the IMA's attention weights."""
    ima_dense_dropout: float = 0.2
    """Dropout after the IMA's dense layer."""
    tcaf: bool = True
    """Triple-modal cross-attention fusion; off: plain concatenation of the three features."""
    tcaf_dropout: float = 0.0
    """Dropout on the TCAF's attention weights."""

    def __post_init__(self) -> None:
        _require(
            self.width % self.ima_heads == 0,
            f"fusion.width={self.width}",
            f"make it a multiple of the {self.ima_heads} heads",
        )


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """1D DenseNet over the fused sequence [B, 1, 3 * width]."""

    blocks: tuple[int, ...] = (6, 12, 24, 16)
    """Layers of each dense block."""
    growth: int = 32
    """Growth rate."""
    init_features: int = 64
    """Channels of the stem."""
    style: Literal["logits", "released"] = "logits"
    """`logits`: one Linear to the two classes. `released`: Linear 512, ReLU, dropout 0.5, Linear 2, sigmoid, with
    3-wide transition convolutions and no final norm."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Everything that fixes the network's graph."""

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
    """What TMI-CLNet sees, in any order. All three is the network of the paper; two (two-way cross-attention, no IMA)
    and one (encoder, projection, head) are its ablation over modalities."""

    def __post_init__(self) -> None:
        named = set(self.modalities)
        _require(
            0 < len(named) == len(self.modalities) and named <= set(MODALITIES),
            f"network.modalities={list(self.modalities)}",
            f"name one, two or three of {', '.join(MODALITIES)}, each once",
        )


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """total = cross entropy + alpha * TMFF."""

    sdm_scale: float = 50.0
    """Scale of the cosine similarities inside SDM."""
    tmff_lambda: float = 0.6
    """Weight of the pairs with text; 1 - lambda weighs the image-radiomics pair."""
    alpha: float = 1.0
    """Weight of TMFF; 0 switches it off."""

    def __post_init__(self) -> None:
        _require(0.0 <= self.tmff_lambda <= 1.0, f"loss.tmff_lambda={self.tmff_lambda}", "give a value in [0, 1]")
        _require(self.alpha >= 0.0, f"loss.alpha={self.alpha}", "give 0 or more")


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """Random changes of the training CTs, each drawn evenly from minus to plus its bound; all 0: none (the paper)."""

    shift_voxels_DHW: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Bound of the shift along each axis, in voxels of the network's input."""
    rotation_degrees: float = 0.0
    """Bound of the rotation in the axial plane."""
    noise: float = 0.0
    """Bound of the standard deviation of Gaussian noise, as a part of the window's width (from 0)."""
    scale: float = 0.0
    """Bound of the relative change of contrast around the window's middle."""
    offset: float = 0.0
    """Bound of the change of brightness, as a part of the window's width."""

    @property
    def active(self) -> bool:
        """Whether anything is changed."""
        return any((*self.shift_voxels_DHW, self.rotation_degrees, self.noise, self.scale, self.offset))

    def __post_init__(self) -> None:
        _require(
            min(*self.shift_voxels_DHW, self.rotation_degrees, self.noise, self.scale, self.offset) >= 0,
            "augmentation: a bound is negative",
            "give 0 or more",
        )
        _require(
            self.scale < 1 and self.rotation_degrees <= 180,
            f"augmentation.scale={self.scale}, rotation_degrees={self.rotation_degrees}",
            "give a scale below 1 and a rotation of at most 180 degrees",
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimisation and protocol."""

    folds: int = 5
    """Folds of the cross-validation."""
    epochs: int = 300
    """Epochs a fold."""
    batch_size: int = 2
    """Cases a step."""
    learning_rate: float = 1e-4
    """Adam's learning rate."""
    weight_decay: float = 0.0
    """Adam's weight decay."""
    seed: int = 42
    """Seed of the folds, the initial weights, the order of the cases and the dropout."""
    validation_fraction: float = 0.2
    """Part of a fold's training cases that the epoch is picked on: the nearest of a half, a third, a quarter, ..."""
    protocol: Literal["grouped", "released"] = "grouped"
    """`grouped`: stratified folds grouped by patient, epoch picked on the inner validation split. `released`:
    KFold(shuffle), epoch picked on the very fold it reports, hence optimistic."""
    freeze: tuple[str, ...] = ()
    """What is not trained: `ct`, `text`, `radiomics`, or the first part of an encoder: `ct:stem`, `ct:layer2` (stem and
    stages 1 and 2), `text:8` (embeddings and the first 8 layers)."""
    cache_frozen: bool = True
    """Compute the output of a wholly frozen CT or text encoder once a case instead of in every epoch."""
    frozen_batch_norm: bool = False
    """Every BatchNorm keeps its statistics and runs as in prediction, whatever the batch."""
    precision: Literal["32", "bf16-mixed", "16-mixed"] = "32"
    """Of the training steps; the weights, the validation and the reported predictions stay float32."""
    accumulate: int = 1
    """Batches whose gradients are averaged into one step."""
    activation_checkpointing: bool = False
    """Compute the activations inside each residual block and text layer again in the backward pass instead of keeping
    them: less memory, about a third more time, the same weights."""

    def __post_init__(self) -> None:
        _require(self.folds >= 2, f"train.folds={self.folds}", "give at least 2 folds")
        _require(self.epochs >= 1, f"train.epochs={self.epochs}", "give at least 1 epoch")
        _require(
            self.batch_size >= 2,
            f"train.batch_size={self.batch_size}",
            "give at least 2 cases a step: BatchNorm cannot train on one",
        )
        _require(self.learning_rate > 0, f"train.learning_rate={self.learning_rate}", "give a positive rate")
        _require(
            0.0 < self.validation_fraction < 0.5,
            f"train.validation_fraction={self.validation_fraction}",
            "give a fraction between 0 and 0.5",
        )
        unknown = sorted(name for name in self.freeze if not FREEZABLE.fullmatch(name))
        _require(
            not unknown,
            f"train.freeze names {unknown}",
            "name ct, text, radiomics, ct:stem, ct:layer1 to ct:layer4, or text:N for N layers",
        )
        encoders = [name.partition(":")[0] for name in self.freeze]
        _require(len(set(encoders)) == len(encoders), f"train.freeze={list(self.freeze)}", "name an encoder once")
        _require(self.accumulate >= 1, f"train.accumulate={self.accumulate}", "give at least 1 batch a step")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole, frozen configuration; travels with every run and bundle."""

    preset: str
    """Name of the preset it started from."""
    ct: CtConfig
    """CT preprocessing."""
    radiomics: RadiomicsConfig = RadiomicsConfig()
    """Radiomics scaling."""
    clinical: ClinicalConfig = ClinicalConfig()
    """Clinical text."""
    network: NetworkConfig = NetworkConfig()
    """Network."""
    system: ModelConfig = field(default_factory=ModelConfig)
    """Which system is trained: TMI-CLNet, or one that it is compared with."""
    loss: LossConfig = LossConfig()
    """Losses."""
    train: TrainConfig = TrainConfig()
    """Training."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """Random changes of the training CTs."""

    def __post_init__(self) -> None:
        if self.clinical.vocab_size is not None:
            _require(
                self.clinical.vocab_size <= self.network.text_encoder.vocab_size,
                f"clinical.vocab_size={self.clinical.vocab_size} exceeds "
                f"network.text_encoder.vocab_size={self.network.text_encoder.vocab_size}",
                "make the embedding table at least as large as the vocabulary",
            )
