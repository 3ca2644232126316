"""Creates the network of a config, or one of its parts.

Training fits the whole network. The export and the eager engine create the parts.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import UsageError
from tmi.toolkit.models.baselines.hfbsurv import HfbsurvFusion
from tmi.toolkit.models.baselines.mmd import MmdFusion
from tmi.toolkit.models.baselines.simpleff import SimpleFfFusion, SliceFeatures
from tmi.toolkit.models.encoders.bert import TextEncoder
from tmi.toolkit.models.encoders.resnet2d import SliceEncoder
from tmi.toolkit.models.encoders.resnet3d import CtEncoder
from tmi.toolkit.models.encoders.vit import VitEncoder
from tmi.toolkit.models.multimodal import MultimodalNetwork
from tmi.toolkit.models.outputs import LinearHead
from tmi.toolkit.models.registry import NEURAL_MODELS, active_modalities, ct_feature_width, encoder_roles
from tmi.toolkit.models.tmi_clnet.fusion import Fusion
from tmi.toolkit.models.tmi_clnet.modality_ablation import SubsetFusion
from tmi.toolkit.models.tmi_clnet.model import TmiClnet


def create_network(config: Config) -> MultimodalNetwork:
    """The whole network of one fold with freshly initialised weights.

    Raises:
        UsageError: the model has no network, or its sizes contradict each other.
    """
    name = config.system.name
    if name not in NEURAL_MODELS:
        raise UsageError(f"model {name} has no network", fix=f"choose one of {', '.join(NEURAL_MODELS)}")
    modalities = active_modalities(config)
    if name == "tmi-clnet" and len(modalities) == 3:
        return TmiClnet(config.network)
    roles = encoder_roles(modalities)
    return MultimodalNetwork(
        ct=create_network_part(config, "ct") if "ct" in roles else None,
        text=create_network_part(config, "text") if "text" in roles else None,
        fusion=create_network_part(config, "fusion"),
        radiomics="radiomics" in modalities,
    )


def create_network_part(config: Config, role: Literal["ct", "text", "fusion"]) -> nn.Module:
    """One part of the network.

    Raises:
        UsageError: as in `create_network`.
    """
    if role == "ct":
        return _create_ct_part(config)
    if role == "text":
        return TextEncoder(config.network.text_encoder)
    match config.system.name:
        case "resnet50" | "vit":
            return LinearHead(ct_feature_width(config))
        case "simpleff":
            return SimpleFfFusion(config.system.simpleff)
        case "hfbsurv":
            return HfbsurvFusion(config)
        case "mmd":
            return MmdFusion(config)
        case _:
            return Fusion(config.network) if len(active_modalities(config)) == 3 else SubsetFusion(config.network)


def _create_ct_part(config: Config) -> nn.Module:
    system, depth = config.system, config.ct.shape_DHW[0]
    if system.name == "vit":
        return VitEncoder(config)
    if system.name == "simpleff":
        return SliceFeatures(system.simpleff, system.resnet2d, depth=depth)
    if system.name == "resnet50" and system.dims == 2:
        return SliceEncoder(system.resnet2d, depth=depth)
    return CtEncoder(config.network.ct_encoder)
