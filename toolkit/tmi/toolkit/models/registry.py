"""What each system sees, which parts of its network are graphs of a bundle, and where its logits come from. No torch.

A network has up to three parts, by which its weights are named and at which an export cuts it: `ct_encoder.`
(the volume), `text_encoder.` (the tokens), and `fusion.`, which takes the two encoders' features and the scaled
radiomics, those of them that the system sees, and gives the logits.
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
"""System -> the modalities that it can look at; `active_modalities` says which ones a configured one does."""
LOGIT_LAYERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "tmi-clnet": ("fusion.head.densenet.class_layers.out.weight", "fusion.head.densenet.class_layers.out.bias"),
        "resnet50": ("fusion.out.weight", "fusion.out.bias"),
        "vit": ("fusion.out.weight", "fusion.out.bias"),
        "hfbsurv": ("fusion.head.7.weight", "fusion.head.7.bias"),
        "mmd": ("fusion.head.2.weight", "fusion.head.2.bias"),
    }
)
"""System -> the layer whose outputs are the logits, which a temperature T divides: (W/T) x + b/T."""
TEMPERATURE_BUFFER = "fusion.temperature"
"""What divides the logits of `simpleff`, which no layer gives: they are the logarithm of an average."""
NEURAL_MODELS: tuple[str, ...] = (*LOGIT_LAYERS, "simpleff")
"""Systems with a network, of which a bundle can be made."""


def active_modalities(config: Config) -> tuple[Modality, ...]:
    """The modalities that the configured system looks at, in the order of the ring."""
    if config.system.name == "tmi-clnet":
        return tuple(m for m in MODALITIES if m in config.network.modalities)
    return MODEL_MODALITIES[config.system.name]


def encoder_roles(modalities: tuple[Modality, ...]) -> tuple[EncoderRole, ...]:
    """The encoders of a network that sees these modalities: `ct`, `text`, both or none."""
    there: tuple[tuple[EncoderRole, Modality], ...] = (("ct", "image"), ("text", "clinical"))
    return tuple(role for role, modality in there if modality in modalities)


def ct_feature_width(config: Config) -> int:
    """Numbers that the CT part gives for a case."""
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
    """A fold's weights with its temperature in them: logits / T, so that no engine has a temperature to forget.

    Args:
        config: of the run.
        state: tensors by name, without `prefix`.
        temperature: T.
        prefix: of the part whose weights these are; empty for the whole network.

    Raises:
        DamagedError: a temperature, and nothing there that could take it.
    """
    found = dict(state)
    if temperature == 1.0:
        return found
    names = LOGIT_LAYERS.get(config.system.name, (TEMPERATURE_BUFFER,))
    for name in (n.removeprefix(prefix) for n in names if n.startswith(prefix)):
        if name not in found:
            raise DamagedError(
                f"run: its weights are not those of the network in its config: {prefix}{name}, which takes the "
                "temperature, is missing",
                fix="use the version of tmi that trained the run (its run.json names it), or train it again",
            )
        found[name] = found[name] * temperature if prefix + name == TEMPERATURE_BUFFER else found[name] / temperature
    return found
