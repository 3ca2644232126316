"""Registry of the models: the modalities that each uses, the encoders it has, and its logit layer. It imports no torch.

A network has up to three parts. Their names are the prefixes of its weights, and an export partitions the network at
them: `ct_encoder.` takes the volume, `text_encoder.` the tokens, and `fusion.` the features of both encoders and the
scaled radiomics, as far as the model uses them, and returns the logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from tmi.toolkit.config.schema import MODALITIES, Config, Modality
from tmi.toolkit.errors import DamagedError

EncoderRole = Literal["ct", "text"]
MODEL_MODALITIES: Mapping[str, tuple[Modality, ...]] = MappingProxyType(
    {
        "tmi-clnet": MODALITIES,
        "resnet50": ("image",),
        "vit": ("image",),
        "svm": ("radiomics",),
        "rf": ("radiomics",),
        "simpleff": ("radiomics", "image"),
        "hfbsurv": MODALITIES,
        "mmd": MODALITIES,
        "logreg": ("clinical",),
        "clinical-rf": ("clinical",),
    }
)
"""Model -> the modalities that it can use; `active_modalities` gives those of a config."""
LOGIT_LAYERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "tmi-clnet": ("fusion.head.densenet.class_layers.out.weight", "fusion.head.densenet.class_layers.out.bias"),
        "resnet50": ("fusion.out.weight", "fusion.out.bias"),
        "vit": ("fusion.out.weight", "fusion.out.bias"),
        "hfbsurv": ("fusion.head.7.weight", "fusion.head.7.bias"),
        "mmd": ("fusion.head.2.weight", "fusion.head.2.bias"),
    }
)
"""Model -> weight and bias of the layer that computes the logits; a temperature T divides both: (W/T) x + b/T."""
TEMPERATURE_BUFFER = "fusion.temperature"
"""Buffer that divides the logits of `simpleff`: they are the logarithm of an average, so no layer computes them."""
NEURAL_MODELS: tuple[str, ...] = (*LOGIT_LAYERS, "simpleff")
"""Models with a network; only these can be exported."""


def active_modalities(config: Config) -> tuple[Modality, ...]:
    """The modalities that the configured model uses, in the order of the TCAF ring."""
    if config.system.name == "tmi-clnet":
        return tuple(m for m in MODALITIES if m in config.network.modalities)
    return MODEL_MODALITIES[config.system.name]


def encoder_roles(modalities: tuple[Modality, ...]) -> tuple[EncoderRole, ...]:
    """The encoders of a network that uses these modalities: `ct`, `text`, both or none."""
    inputs: tuple[tuple[EncoderRole, Modality], ...] = (("ct", "image"), ("text", "clinical"))
    return tuple(role for role, modality in inputs if modality in modalities)


def ct_feature_width(config: Config) -> int:
    """Width of the CT part's feature vector."""
    system = config.system
    if system.name == "simpleff":
        return len(system.simpleff.slices_of_64) * system.simpleff.features
    if system.name == "vit":
        return system.vit.width_3d if system.dims == 3 else system.vit.width
    if system.name == "resnet50" and system.dims == 2:
        return system.resnet2d.feature_width
    return config.network.ct_encoder.feature_width


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
    names = LOGIT_LAYERS.get(config.system.name, (TEMPERATURE_BUFFER,))
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
