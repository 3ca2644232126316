"""Row, parameters and widths of a toy model, as another package would add it. It imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from tmi.toolkit.config.schema import Config
from tmi.toolkit.model_registry import TEXT_ENCODER, EncoderSpec, ModelSpec


@dataclass(frozen=True, kw_only=True)
class ToyParameters:
    """Sizes of the toy network."""

    channels: int = 3
    """Channels of its image feature."""


def image_width(config: Config) -> int:
    """Width of the image feature."""
    return config.system.parameters_as(ToyParameters).channels


TOY = ModelSpec(
    name="toy",
    description="mean of one convolution, with the text encoder of TMI-CLNet",
    source="a test",
    modalities=("clinical", "image"),
    trainer="torch",
    builder="factories.toy_network:fusion",
    encoders={
        "clinical": TEXT_ENCODER,
        "image": EncoderSpec(builder="factories.toy_network:image_encoder", width="factories.toy_model:image_width"),
    },
    loss="factories.toy_network:toy_loss",
    logit_layer=("fusion.classify.weight", "fusion.classify.bias"),
    parameters="factories.toy_model:ToyParameters",
)
"""The row, which the entry point `toy` names."""
