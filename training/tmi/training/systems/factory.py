"""Builds the configured network or estimator, and returns its loss and its encoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tmi.toolkit.config.schema import Config, LossConfig
from tmi.toolkit.model_registry import import_target
from tmi.toolkit.models.encoders.bert import TextEncoder
from tmi.toolkit.models.encoders.mlp import RadiomicsEncoder
from tmi.toolkit.models.encoders.resnet3d import CtEncoder
from tmi.toolkit.models.factory import create_network
from tmi.toolkit.models.registry import configured_model
from tmi.training.losses.total import Loss

LossFunction = Callable[[Any, Tensor, LossConfig], Loss]
"""(output of the network, labels, loss config) -> the loss and its parts."""


class NetworkOutput(Protocol):
    """Output of every network; subclasses may have further fields."""

    @property
    def logits_BK(self) -> Float[Tensor, "B K"]:
        """Logits; class order as in `tmi.toolkit.config.schema.CLASSES`."""


def build_model(config: Config) -> Any:
    """The configured model: a network, or an unfitted scikit-learn estimator."""
    spec = configured_model(config)
    return create_network(config) if spec.trainer == "torch" else import_target(spec.builder)(config)


def build_network(config: Config, *, seed: int) -> nn.Module:
    """The configured network with weights initialised from `seed`; torch's global random state is restored.

    Its `forward` takes (ct, input_ids, attention_mask, radiomics) and returns a `NetworkOutput`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create_network(config)


def loss_function(config: Config) -> LossFunction:
    """The loss of the configured model."""
    function: LossFunction = import_target(configured_model(config).loss)
    return function


def encoders(network: nn.Module) -> dict[str, nn.Module]:
    """The encoders that a network shares with TMI-CLNet, by the names of `train.freeze`: `ct`, `text`, `radiomics`.

    2D slice encoders are not included.
    """
    candidates = {
        "ct": getattr(network, "ct_encoder", None),
        "text": getattr(network, "text_encoder", None),
        "radiomics": getattr(getattr(network, "fusion", None), "radiomics_encoder", None),
    }
    shared = (CtEncoder, TextEncoder, RadiomicsEncoder)
    return {name: module for name, module in candidates.items() if isinstance(module, shared)}
