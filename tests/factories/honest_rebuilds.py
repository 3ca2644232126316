"""Ten honest rebuilds of a good model, none of which an export or `tmi verify` may refuse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from tmi.toolkit.config.presets import tiny
from tmi.toolkit.config.schema import Config, CtConfig


@dataclass(frozen=True, kw_only=True)
class Rebuild:
    """One good model."""

    name: str
    """What is particular about it."""
    seed: int
    """Of its weights, scalers and tokenizers."""
    change: Callable[[Config], Config] = lambda config: config
    """From the nano config to its own."""
    artefacts: tuple[str, ...] = ("torchscript",)
    """What it is exported as."""
    sharing: Mapping[str, bool] = field(default_factory=dict)
    """Which encoders its folds share."""
    folds: int = 2
    """Number of folds."""


def ablated(config: Config) -> Config:
    """No IMA, no TCAF."""
    fusion = replace(config.network.fusion, ima=False, tcaf=False)
    return replace(config, network=replace(config.network, fusion=fusion))


def like_the_released_code(config: Config) -> Config:
    """Every switch that the released preset throws, at this size."""
    network = replace(
        config.network,
        ct_encoder=replace(config.network.ct_encoder, fc_width=12),
        text_encoder=replace(config.network.text_encoder, pooling="pooler"),
        fusion=replace(config.network.fusion, projection_norm=False, layer_norm_eps=1e-12, tcaf_dropout=0.1),
        head=replace(config.network.head, style="released"),
    )
    return replace(
        config,
        ct=replace(config.ct, scale_to=(0.0, 255.0), depth_resampling="nearest"),
        clinical=replace(config.clinical, pad_to_max=True),
        network=network,
    )


def without_tcaf(config: Config) -> Config:
    return replace(config, network=replace(config.network, fusion=replace(config.network.fusion, tcaf=False)))


def other_window(config: Config) -> Config:
    return replace(config, ct=replace(config.ct, window_hu=(-160.0, 240.0), shape_DHW=(9, 14, 18)))


def z_scored(config: Config) -> Config:
    return replace(config, radiomics=replace(config.radiomics, scaling="zscore"))


def tiny_preset(config: Config) -> Config:
    return replace(tiny(), ct=CtConfig(shape_DHW=(12, 24, 24)))


REBUILDS = (
    Rebuild(name="another seed, TorchScript", seed=1),
    Rebuild(name="one CT encoder for all folds", seed=2, sharing={"shared_ct": True}),
    Rebuild(
        name="without IMA and TCAF, one text and one CT encoder",
        seed=3,
        change=ablated,
        artefacts=("torchscript", "onnx"),
        sharing={"shared_text": True, "shared_ct": True},
    ),
    Rebuild(
        name="as the released code has it, both encoders shared",
        seed=4,
        change=like_the_released_code,
        artefacts=("onnx", "torchscript"),
        sharing={"shared_text": True, "shared_ct": True},
    ),
    Rebuild(name="another seed, ONNX", seed=5, artefacts=("onnx",)),
    Rebuild(name="three folds", seed=6, folds=3),
    Rebuild(name="without TCAF", seed=7, change=without_tcaf),
    Rebuild(name="another window and an odd volume", seed=8, change=other_window),
    Rebuild(name="z-scored radiomics", seed=9, change=z_scored, sharing={"shared_text": True}),
    Rebuild(name="preset tiny", seed=10, change=tiny_preset, sharing={"shared_text": True, "shared_ct": True}),
)
QUICK = REBUILDS[:4]
"""Those of the default test run."""
