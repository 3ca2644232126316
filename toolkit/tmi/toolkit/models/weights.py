"""Loads weights into a network strictly; an error names the first name or shape that differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from tmi.toolkit.errors import DamagedError, UsageError

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def create_with_weights(
    create: Callable[[], AnyModule], state: Mapping[str, Tensor], *, where: str, fix: str
) -> AnyModule:
    """Create a network and load exactly these weights. The random state is unchanged.

    Names and shapes are compared before any memory is allocated for the network, because its sizes may be forged.

    Args:
        create: creates the network by its config.
        state: as in `load_weights_strict`.
        where: as in `load_weights_strict`.
        fix: as in `load_weights_strict`.

    Raises:
        DamagedError: names or shapes differ from the network's, or no network has the sizes of the config.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):  # shapes without memory
                expected = create().state_dict()
        except (RuntimeError, ValueError, ArithmeticError, UsageError) as error:
            message = " ".join(str(error).split())[:200]
            raise DamagedError(f"{where} are of a network that cannot be created: {message}", fix=fix) from error
        _require_same_tensors(expected, state, where=where, fix=fix)
        network = create()
    return load_weights_strict(network, state, where=where, fix=fix)


def _require_same_tensors(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], *, where: str, fix: str) -> None:
    missing, unknown = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    shapes = sorted(name for name in set(expected) & set(state) if expected[name].shape != state[name].shape)
    if not (missing or unknown or shapes):
        return
    difference = (
        f"{missing[0]} is missing"
        if missing
        else f"{unknown[0]} is unknown"
        if unknown
        else f"{shapes[0]} has shape {list(state[shapes[0]].shape)} instead of {list(expected[shapes[0]].shape)}"
    )
    raise DamagedError(f"{where} are not those of the network in its config: {difference}", fix=fix)


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
        _require_same_tensors(module.state_dict(), state, where=where, fix=fix)
        message = " ".join(str(error).split())[:200]
        raise DamagedError(f"{where} are not those of the network in its config: {message}", fix=fix) from error
    return module.eval().requires_grad_(False)
