"""What the configured model consists of: its modalities, encoders, feature widths and logit layer. Imports no torch.

The rows are those of `tmi.toolkit.model_registry`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import DamagedError
from tmi.toolkit.modality import ENCODER_NAMES, GRAPH_NAMES, MODALITIES, EncoderName, GraphEncoder, Modality
from tmi.toolkit.model_registry import (
    SHARED_ENCODERS,
    TEMPERATURE_BUFFER,
    EncoderSpec,
    ModelSpec,
    import_target,
    model_spec,
)


def configured_model(config: Config) -> ModelSpec:
    """The row of the configured model."""
    return model_spec(config.system.name)


def active_modalities(config: Config) -> tuple[Modality, ...]:
    """The modalities that the configured model uses, in the order of the TCAF ring."""
    spec = configured_model(config)
    return tuple(m for m in MODALITIES if m in config.network.modalities) if spec.ablation else spec.modalities


def active_encoder(config: Config, modality: Modality) -> EncoderSpec | None:
    """The configured model's encoder of a modality; None: it does not use the modality, or has no encoder of it."""
    if modality not in active_modalities(config):
        return None
    return configured_model(config).encoder(modality, dims=config.system.dims)


def encoder_roles(modalities: tuple[Modality, ...]) -> tuple[GraphEncoder, ...]:
    """The graphs of encoders of a network that uses these modalities: `ct`, `text`, both or none."""
    return tuple(role for modality, role in GRAPH_NAMES.items() if modality in modalities)


def encoder_names(config: Config) -> tuple[EncoderName, ...]:
    """The encoders of the configured model that it shares with TMI-CLNet: `ct`, `text`, `radiomics`."""
    encoders = {m: active_encoder(config, m) for m in MODALITIES}
    return tuple(ENCODER_NAMES[m] for m, encoder in encoders.items() if encoder == SHARED_ENCODERS[m])


def feature_width(config: Config, modality: Modality) -> int:
    """Width of the feature of the configured model's encoder of a modality.

    Raises:
        ValueError: the model has no such encoder.
    """
    encoder = active_encoder(config, modality)
    if encoder is None:
        raise ValueError(f"model {config.system.name} has no encoder of {modality}")
    width: Callable[[Config], int] = import_target(encoder.width)
    return width(config)


def apply_temperature(
    config: Config, state: Mapping[str, Any], temperature: float, *, prefix: str = ""
) -> dict[str, Any]:
    """Weights of a fold whose logits are divided by its temperature, so that engines need no temperature of their own.

    Args:
        config: of the run.
        state: tensors by name, without `prefix`.
        temperature: T.
        prefix: of the part whose weights these are; empty for the whole network.

    Raises:
        DamagedError: the temperature is not 1 and its layer is missing.
    """
    scaled = dict(state)
    if temperature == 1.0:
        return scaled
    names = configured_model(config).logit_layer
    for name in (n.removeprefix(prefix) for n in names if n.startswith(prefix)):
        if name not in scaled:
            raise DamagedError(
                f"run: its weights are not those of the network in its config: {prefix}{name}, which takes the "
                "temperature, is missing",
                fix="use the version of tmi that trained the run (its run.json names it), or train it again",
            )
        # The buffer divides the logits itself, so it is multiplied where weights are divided.
        scaled[name] = scaled[name] * temperature if prefix + name == TEMPERATURE_BUFFER else scaled[name] / temperature
    return scaled
