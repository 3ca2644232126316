"""Creates the network of a config, or one of its parts, by the functions that its row of the registry names.

Training fits the whole network. The export and the eager engine create the parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import nn

from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import UsageError
from tmi.toolkit.modality import GRAPH_NAMES
from tmi.toolkit.model_registry import import_target, model_names
from tmi.toolkit.models.multimodal import MultimodalNetwork
from tmi.toolkit.models.registry import active_encoder, active_modalities, configured_model


def create_network(config: Config) -> MultimodalNetwork:
    """The whole network of one fold with freshly initialised weights.

    Raises:
        UsageError: the model has no network, or its sizes contradict each other.
    """
    spec = configured_model(config)
    if spec.trainer != "torch":
        raise UsageError(
            f"model {spec.name} has no network", fix=f"choose one of {', '.join(model_names(trainer='torch'))}"
        )
    create: Callable[[Config], MultimodalNetwork] = import_target(spec.network)
    return create(config)


def assemble_network(config: Config) -> MultimodalNetwork:
    """The network of the parts that the model's row names.

    Raises:
        UsageError: as in `create_network`.
    """
    encoders = {role: create_network_part(config, role) for m, role in GRAPH_NAMES.items() if active_encoder(config, m)}
    return MultimodalNetwork(
        ct=encoders.get("ct"),
        text=encoders.get("text"),
        fusion=create_network_part(config, "fusion"),
        radiomics="radiomics" in active_modalities(config),
    )


def create_network_part(config: Config, role: Literal["ct", "text", "fusion"]) -> nn.Module:
    """One part of the network.

    Raises:
        UsageError: as in `create_network`.
        ValueError: the network has no such part.
    """
    encoders = {name: active_encoder(config, m) for m, name in GRAPH_NAMES.items()}
    encoder = None if role == "fusion" else encoders[role]
    if role != "fusion" and encoder is None:
        raise ValueError(f"model {config.system.name} has no part {role}")
    create: Callable[[Config], nn.Module] = import_target(
        configured_model(config).builder if encoder is None else encoder.builder
    )
    return create(config)
