"""Loads weights into a network strictly; an error names the first name or shape that differs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

from tmi.toolkit.errors import DamagedError

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def load_weights_strict(module: AnyModule, state: Mapping[str, Tensor], *, where: str, fix: str) -> AnyModule:
    """Load exactly these weights; the module is returned in evaluation mode with `requires_grad` off.

    Args:
        module: the network that receives them.
        state: tensors by name.
        where: start of the error's text: what the weights belong to.
        fix: what to do if they belong to another network.

    Raises:
        DamagedError: names or shapes differ from the module's.
    """
    try:
        module.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        names = set(module.state_dict())
        missing, unknown = sorted(names - set(state)), sorted(set(state) - names)
        difference = (
            f"{missing[0]} is missing" if missing else f"{unknown[0]} is unknown" if unknown else "a shape differs"
        )
        raise DamagedError(f"{where} are not those of the network in its config: {difference}", fix=fix) from error
    return module.eval().requires_grad_(False)
