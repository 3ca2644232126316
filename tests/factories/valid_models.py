"""Ten valid models of different configurations; `tmi export` and `tmi verify` must accept each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from tmi.toolkit.config.presets import tiny
from tmi.toolkit.config.schema import Config, CtConfig


@dataclass(frozen=True, kw_only=True)
class ValidModel:
    """One valid model and how it is exported."""

    name: str
    """What is special about it."""
    seed: int
    """Seed of its weights, scalers and tokenizers."""
    change: Callable[[Config], Config] = lambda config: config
    """Changes the nano config to its config."""
    artefacts: tuple[str, ...] = ("torchscript",)
    """Formats that it is exported to."""
    sharing: Mapping[str, bool] = field(default_factory=dict)
    """Encoders that its folds share, as arguments of `write_random_run`."""
    folds: int = 2
    """Number of folds."""


def ablated(config: Config) -> Config:
    """Without IMA and TCAF."""
    fusion = replace(config.network.fusion, ima=False, tcaf=False)
    return replace(config, network=replace(config.network, fusion=fusion))


def released_options(config: Config) -> Config:
    """Every option that the preset `released` sets, at this size."""
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


VALID_MODELS = (
    ValidModel(name="another seed, TorchScript", seed=1),
    ValidModel(name="one CT encoder for all folds", seed=2, sharing={"shared_ct": True}),
    ValidModel(
        name="without IMA and TCAF, one text and one CT encoder",
        seed=3,
        change=ablated,
        artefacts=("torchscript", "onnx"),
        sharing={"shared_text": True, "shared_ct": True},
    ),
    ValidModel(
        name="options of the released code, both encoders shared",
        seed=4,
        change=released_options,
        artefacts=("onnx", "torchscript"),
        sharing={"shared_text": True, "shared_ct": True},
    ),
    ValidModel(name="another seed, ONNX", seed=5, artefacts=("onnx",)),
    ValidModel(name="three folds", seed=6, folds=3),
    ValidModel(name="without TCAF", seed=7, change=without_tcaf),
    ValidModel(name="another window and an odd volume", seed=8, change=other_window),
    ValidModel(name="z-scored radiomics", seed=9, change=z_scored, sharing={"shared_text": True}),
    ValidModel(name="preset tiny", seed=10, change=tiny_preset, sharing={"shared_text": True, "shared_ct": True}),
)
QUICK = VALID_MODELS[:4]
"""Models of the default test run."""
