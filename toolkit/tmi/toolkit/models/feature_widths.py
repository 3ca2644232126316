"""Widths of the encoders' features by the config. It imports no torch: a serving machine checks graphs by them."""

from __future__ import annotations

from tmi.toolkit.config.schema import Config


def ct_encoder(config: Config) -> int:
    """Width of the 3D ResNet's feature."""
    return config.network.ct_encoder.feature_width


def text_encoder(config: Config) -> int:
    """Width of BERT's feature."""
    return config.network.text_encoder.hidden_size


def radiomics_encoder(config: Config) -> int:
    """Width of the MLP's feature."""
    return config.network.radiomics_encoder.out


def slice_encoder(config: Config) -> int:
    """Width of the 2D ResNet's feature."""
    return config.system.resnet2d.feature_width


def slice_features(config: Config) -> int:
    """Width of SimpleFF's features, of all slices together."""
    return config.system.simpleff.feature_width


def vit_encoder(config: Config) -> int:
    """Width of the class token."""
    return config.system.vit.width_3d if config.system.dims == 3 else config.system.vit.width
