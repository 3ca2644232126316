"""Reading a file of weights that somebody else made: tensors only, never code.

Accepted are safetensors and what `torch.save` writes. The latter is a pickle, so it is read with `weights_only=True`:
anything in it beyond tensors and plain containers ends the reading, and nothing of it is run.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tmi.toolkit.errors import DamagedError, UsageError

WRAPPER_KEYS = ("state_dict", "model_state_dict", "model")
"""Keys under which checkpoints keep the weights beside optimiser and epoch."""
DATA_PARALLEL_PREFIX = "module."
"""What torch's DataParallel puts before every name."""


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """The tensors of a file, without wrapper and `module.`."""

    tensors: Mapping[str, Tensor]
    """Name -> tensor, on the CPU."""
    wrapper: str | None
    """Key that the weights were found under; None: at the top."""
    parallel: bool
    """Whether the names had `module.` before them."""


def read_weights(path: Path) -> WeightFile:
    """The tensors of a file.

    Raises:
        UsageError: no such file, or no tensors in it.
        DamagedError: it cannot be read, or holds more than tensors; it is not trusted then.
    """
    if not path.is_file():
        raise UsageError(f"weights {path} are not there", fix="give the path of a file of weights")
    content = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    wrapper = next((k for k in WRAPPER_KEYS if isinstance(content.get(k), Mapping)), None)
    inner = content[wrapper] if wrapper else content
    tensors = {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UsageError(f"weights {path.name} hold no tensor by name", fix="give a state dict of a network")
    parallel = all(name.startswith(DATA_PARALLEL_PREFIX) for name in tensors)
    if parallel:
        tensors = {name.removeprefix(DATA_PARALLEL_PREFIX): tensor for name, tensor in tensors.items()}
    return WeightFile(tensors=tensors, wrapper=wrapper, parallel=parallel)


def _safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Any] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path) from error
    return tensors


def _torch(path: Path) -> Mapping[str, Any]:
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DamagedError(
            f"weights {path.name} are not trusted: the file holds more than tensors, or is no checkpoint; nothing of "
            "it was run",
            fix="give a file of tensors alone, best a .safetensors made where the checkpoint is trusted",
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, AttributeError) as error:
        raise _unreadable(path) from error
    if not isinstance(content, Mapping):
        raise UsageError(f"weights {path.name} hold no tensors by name", fix="give a state dict of a network")
    return content


def _unreadable(path: Path) -> DamagedError:
    return DamagedError(f"weights {path.name} cannot be read", fix="fetch the file again")
