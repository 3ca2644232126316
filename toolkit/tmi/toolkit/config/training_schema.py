"""Configuration of losses, augmentation and optimisation; `tmi.toolkit.config.schema` has the other sections."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from tmi.toolkit.errors import UsageError

FREEZABLE = re.compile(r"ct(:stem|:layer[1-4])?|text(:\d+)?|radiomics")
"""Valid entries of `train.freeze`."""


def require(holds: bool, what: str, fix: str) -> None:
    """Raise a `UsageError` on a setting unless `holds`."""
    if not holds:
        raise UsageError(f"config: {what}", fix=fix)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Loss: total = cross entropy + alpha * TMFF."""

    sdm_scale: float = 50.0
    """Scale of the cosine similarities in the SDM loss."""
    tmff_lambda: float = 0.6
    """Weight lambda of the pairs with text; the image-radiomics pair has the weight 1 - lambda."""
    alpha: float = 1.0
    """Weight of TMFF; 0 disables it."""
    label_smoothing: float = 0.0
    """Part of a label's probability that the cross entropy spreads evenly over the classes."""

    def __post_init__(self) -> None:
        require(0.0 <= self.tmff_lambda <= 1.0, f"loss.tmff_lambda={self.tmff_lambda}", "give a value in [0, 1]")
        require(self.alpha >= 0.0, f"loss.alpha={self.alpha}", "give 0 or more")
        require(0.0 <= self.label_smoothing < 1.0, f"loss.label_smoothing={self.label_smoothing}", "give 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """Augmentation of the training CTs. Each parameter is sampled uniformly from minus to plus its bound; all bounds 0
    disable it (paper).
    """

    shift_voxels_DHW: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Bound of the shift along each axis, in voxels of the network input."""
    rotation_degrees: float = 0.0
    """Bound of the rotation in the axial plane."""
    noise: float = 0.0
    """Bound of the standard deviation of Gaussian noise, as a fraction of the window width (sampled from 0)."""
    scale: float = 0.0
    """Bound of the relative change of contrast around the window centre."""
    offset: float = 0.0
    """Bound of the change of brightness, as a fraction of the window width."""

    @property
    def active(self) -> bool:
        """Whether any bound is positive."""
        return any((*self.shift_voxels_DHW, self.rotation_degrees, self.noise, self.scale, self.offset))

    def __post_init__(self) -> None:
        require(
            min(*self.shift_voxels_DHW, self.rotation_degrees, self.noise, self.scale, self.offset) >= 0,
            "augmentation: a bound is negative",
            "give 0 or more",
        )
        require(
            self.scale < 1 and self.rotation_degrees <= 180,
            f"augmentation.scale={self.scale}, rotation_degrees={self.rotation_degrees}",
            "give a scale below 1 and a rotation of at most 180 degrees",
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimisation and evaluation protocol."""

    folds: int = 5
    """Number of cross-validation folds."""
    epochs: int = 300
    """Epochs per fold."""
    batch_size: int = 2
    """Cases per batch."""
    learning_rate: float = 1e-4
    """Learning rate of Adam; the highest one of a schedule."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant (paper), or half a cosine that ends at 0 with the last step."""
    warmup_epochs: int = 0
    """Epochs in which the learning rate rises linearly from 0, step by step."""
    encoder_epochs: int = 0
    """First epochs in which every encoder is trained alone, with a linear layer of its own that is then discarded; none
    of them is selected. Frozen encoders and models without these encoders are not concerned."""
    ema: float = 0.0
    """Decay per optimizer step of an exponential moving average of the weights, which is validated and saved in place
    of the weights; 0 disables it."""
    weight_decay: float = 0.0
    """Weight decay of Adam."""
    seed: int = 42
    """Random seed of the folds, the initial weights, the case order and the dropout."""
    validation_fraction: float = 0.2
    """Fraction of the training cases for selecting the best epoch; rounded to the nearest of 1/2, 1/3, 1/4, ..."""
    protocol: Literal["grouped", "released"] = "grouped"
    """`grouped`: stratified folds grouped by patient, best epoch selected on the inner validation split. `released`:
    KFold(shuffle), best epoch selected on the held-out fold itself, hence optimistically biased."""
    select_by: Literal["loss", "accuracy", "last"] = "loss"
    """Criterion of the best epoch: lowest cross entropy, highest accuracy at 0.5 (released code), or the last epoch."""
    select_over: int = 1
    """Number of latest epochs whose mean cross entropy or accuracy is the criterion: a handful of validation cases
    makes that of one epoch noisy."""
    freeze: tuple[str, ...] = ()
    """Frozen encoders: `ct`, `text`, `radiomics`, or the first part of one: `ct:stem`, `ct:layer2` (stem, stages 1 and
    2), `text:8` (embeddings and the first 8 layers)."""
    cache_frozen: bool = True
    """Compute the output of a fully frozen CT or text encoder once per case instead of in every epoch."""
    frozen_batch_norm: bool = False
    """Run every BatchNorm in evaluation mode with its running statistics."""
    precision: Literal["32", "bf16-mixed", "16-mixed"] = "32"
    """Precision of the training steps; weights, validation and reported predictions are float32."""
    accumulate: int = 1
    """Number of batches whose gradients are averaged for one optimizer step."""
    activation_checkpointing: bool = False
    """Recompute the activations of each residual block and text layer in the backward pass instead of storing them:
    less memory, about a third more time, identical weights."""

    def __post_init__(self) -> None:
        require(self.folds >= 2, f"train.folds={self.folds}", "give at least 2 folds")
        require(self.epochs >= 1, f"train.epochs={self.epochs}", "give at least 1 epoch")
        require(
            self.batch_size >= 2,
            f"train.batch_size={self.batch_size}",
            "give at least 2 cases per batch: BatchNorm cannot train on one",
        )
        require(
            0 <= self.warmup_epochs < self.epochs and 0 <= self.encoder_epochs < self.epochs,
            f"train.warmup_epochs={self.warmup_epochs}, train.encoder_epochs={self.encoder_epochs} of "
            f"{self.epochs} epochs",
            "give 0 or more, and fewer than train.epochs",
        )
        require(0.0 <= self.ema < 1.0, f"train.ema={self.ema}", "give a decay of 0 to below 1")
        require(self.select_over >= 1, f"train.select_over={self.select_over}", "give at least 1 epoch")
        require(self.learning_rate > 0, f"train.learning_rate={self.learning_rate}", "give a positive rate")
        require(
            0.0 < self.validation_fraction < 0.5,
            f"train.validation_fraction={self.validation_fraction}",
            "give a fraction between 0 and 0.5",
        )
        unknown = sorted(name for name in self.freeze if not FREEZABLE.fullmatch(name))
        require(
            not unknown,
            f"train.freeze names {unknown}",
            "name ct, text, radiomics, ct:stem, ct:layer1 to ct:layer4, or text:N for N layers",
        )
        encoders = [name.partition(":")[0] for name in self.freeze]
        require(len(set(encoders)) == len(encoders), f"train.freeze={list(self.freeze)}", "name an encoder once")
        require(self.accumulate >= 1, f"train.accumulate={self.accumulate}", "give at least 1 batch per step")
