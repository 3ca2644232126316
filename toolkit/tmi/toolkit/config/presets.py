"""Presets: functions that return a complete, frozen config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from tmi.toolkit.config.baseline_schema import (
    HfbsurvConfig,
    MmdConfig,
    ModelConfig,
    RadiomicsModelConfig,
    Resnet2dConfig,
    VitConfig,
)
from tmi.toolkit.config.schema import (
    ClinicalConfig,
    Config,
    CtConfig,
    CtEncoderConfig,
    FusionConfig,
    HeadConfig,
    LossConfig,
    NetworkConfig,
    RadiomicsConfig,
    RadiomicsEncoderConfig,
    TextEncoderConfig,
    TrainConfig,
)
from tmi.toolkit.errors import UsageError

HFBSURV = HfbsurvConfig(layers="shared")
MMD = MmdConfig(reconstruction="sum")


def paper() -> Config:
    """Return the configuration of the paper; `docs/decisions.md` lists the values that the paper does not state."""
    return Config(
        preset="paper",
        ct=CtConfig(shape_DHW=(64, 512, 512)),
        clinical=ClinicalConfig(rendering="compact"),
        system=ModelConfig(hfbsurv=HFBSURV, mmd=MMD),
    )


def released() -> Config:
    """Return the configuration of the authors' released code, for reproducing its numbers."""
    return Config(
        preset="released",
        ct=CtConfig(shape_DHW=(64, 512, 512), scale_to=(0.0, 255.0), depth_resampling="nearest"),
        radiomics=RadiomicsConfig(scaling="zscore", fit_on="cohort"),
        clinical=ClinicalConfig(rendering="pairs", pad_to_max=True),
        network=NetworkConfig(
            ct_encoder=CtEncoderConfig(fc_width=400),
            text_encoder=TextEncoderConfig(pooling="pooler"),
            fusion=FusionConfig(projection_norm=False, layer_norm_eps=1e-12, tcaf_dropout=0.1),
            head=HeadConfig(style="released"),
        ),
        system=ModelConfig(
            resnet2d=Resnet2dConfig(stem_size=3, stem_stride=1, max_pool=False), hfbsurv=HFBSURV, mmd=MMD
        ),
        loss=LossConfig(sdm_scale=2.0, tmff_lambda=0.2, alpha=0.01),
        train=TrainConfig(protocol="released", select_by="accuracy"),
    )


def tiny() -> Config:
    """Return the configuration of the paper with reduced sizes, for two CPU cores; the tokenizer is trained too."""
    return Config(
        preset="tiny",
        ct=CtConfig(shape_DHW=(24, 48, 48)),
        clinical=ClinicalConfig(rendering="compact", max_length=512, vocab_size=1024),
        network=NetworkConfig(
            ct_encoder=CtEncoderConfig(block="basic", layers=(1, 1, 1, 1), planes=(8, 16, 32, 64)),
            text_encoder=TextEncoderConfig(hidden_size=64, layers=2, heads=4, intermediate_size=128, vocab_size=1024),
            radiomics_encoder=RadiomicsEncoderConfig(hidden=64, out=32),
            fusion=FusionConfig(width=32, ima_heads=4),
            head=HeadConfig(blocks=(2, 2, 2, 2), growth=8, init_features=16),
        ),
        system=ModelConfig(
            resnet2d=Resnet2dConfig(block="basic", layers=(1, 1, 1, 1), planes=(8, 16, 32, 64)),
            vit=VitConfig(patch_DHW=(4, 8, 8), width=64, width_3d=64, depth=2, heads=4, mlp=128),
            radiomics_model=RadiomicsModelConfig(trees=100),
            hfbsurv=replace(HFBSURV, hidden=(64, 16)),
            mmd=replace(MMD, embedding=32, fused=32),
        ),
        train=TrainConfig(epochs=20, batch_size=4, learning_rate=1e-3),
    )


PRESETS: Mapping[str, Callable[[], Config]] = MappingProxyType({"paper": paper, "released": released, "tiny": tiny})
"""Name -> function that returns the config."""


def preset(name: str) -> Config:
    """Return the config of a preset.

    Raises:
        UsageError: the preset is unknown; the fix lists the known ones.
    """
    if name not in PRESETS:
        raise UsageError(f"unknown preset {name!r}", fix=f"choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()
