"""The smallest config of the full network: the same classes and code paths, exported in seconds."""

from __future__ import annotations

from dataclasses import replace

from tmi.toolkit.config.presets import tiny
from tmi.toolkit.config.schema import (
    ClinicalConfig,
    Config,
    CtConfig,
    CtEncoderConfig,
    FusionConfig,
    HeadConfig,
    NetworkConfig,
    RadiomicsEncoderConfig,
    TextEncoderConfig,
)


def nano() -> Config:
    """The preset `tiny` with smaller layers and a smaller volume."""
    return replace(
        tiny(),
        ct=CtConfig(shape_DHW=(8, 16, 16)),
        clinical=ClinicalConfig(max_length=40, vocab_size=256),
        network=NetworkConfig(
            ct_encoder=CtEncoderConfig(block="basic", layers=(1, 1, 1, 1), planes=(4, 8, 8, 8)),
            text_encoder=TextEncoderConfig(hidden_size=16, layers=1, heads=2, intermediate_size=16, vocab_size=256),
            radiomics_encoder=RadiomicsEncoderConfig(hidden=16, out=8),
            fusion=FusionConfig(width=16, ima_heads=2),
            head=HeadConfig(blocks=(1, 1), growth=4, init_features=4),
        ),
    )


NANO_OPTIONS = tuple(
    word
    for setting in (
        "ct.shape_DHW=[8,16,16]",
        "clinical.max_length=40",
        "clinical.vocab_size=256",
        "network.ct_encoder.planes=[4,8,8,8]",
        "network.text_encoder.vocab_size=256",
        "network.text_encoder.hidden_size=16",
        "network.text_encoder.layers=1",
        "network.text_encoder.heads=2",
        "network.text_encoder.intermediate_size=16",
        "network.radiomics_encoder.hidden=16",
        "network.radiomics_encoder.out=8",
        "network.fusion.width=16",
        "network.fusion.ima_heads=2",
        "network.head.blocks=[1,1]",
        "network.head.growth=4",
        "network.head.init_features=4",
    )
    for word in ("--set", setting)
)
"""Command-line options that change the preset `tiny` to this config."""
