"""Weights from a file into a network, or a sentence on why they are not this network's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

from tmi.toolkit.errors import DamagedError

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def load_weights_strict(module: AnyModule, state: Mapping[str, Tensor], *, where: str, fix: str) -> AnyModule:
    """The module with exactly these weights, in evaluation mode; none takes a gradient.

    Args:
        module: gets them.
        state: tensors by name.
        where: begins the sentence: what the weights are of.
        fix: what to do where they are of another network.

    Raises:
        DamagedError: other names or shapes than the module's.
    """
    try:
        module.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        names = set(module.state_dict())
        missing, unknown = sorted(names - set(state)), sorted(set(state) - names)
        told = f"{missing[0]} is missing" if missing else f"{unknown[0]} is unknown" if unknown else "a shape differs"
        raise DamagedError(f"{where} are not those of the network in its config: {told}", fix=fix) from error
    return module.eval().requires_grad_(False)
