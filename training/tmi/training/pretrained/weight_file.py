"""Reads a weight file from an external source without executing code.

Accepted are safetensors and files of `torch.save`. The latter are pickles and are read with `weights_only=True`: a file
with anything other than tensors and plain containers is rejected, and none of it is executed.
"""

from __future__ import annotations

import errno
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.storage.bounded_files import WEIGHTS_BYTES, FileTooLargeError, open_regular

WRAPPER_KEYS = ("state_dict", "model_state_dict", "model")
"""Keys under which checkpoints store the weights, next to optimiser and epoch."""
TORCH_READ_ERRORS = (
    RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, AssertionError, ArithmeticError,
    MemoryError,
)  # fmt: skip
"""Exceptions of `torch.load` on damaged files."""
DATA_PARALLEL_PREFIX = "module."
"""Prefix that torch's DataParallel adds to every name."""


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """The tensors of a file, without the wrapper and the prefix `module.`."""

    tensors: Mapping[str, Tensor]
    """Name -> tensor, on the CPU."""
    wrapper: str | None
    """Key under which the weights are stored; None if they are at the top level."""
    parallel: bool
    """Whether the names had the prefix `module.`."""


def read_weights(path: Path) -> WeightFile:
    """Read the tensors of a file.

    Raises:
        UsageError: the file does not exist or contains no tensors.
        DamagedError: the file cannot be read, or is not trusted because it contains more than tensors.
    """
    if not path.is_file():
        raise UsageError(f"weights {path} do not exist", fix="give the path of a weight file")
    _require_bounded(path)
    content = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    wrapper = next((k for k in WRAPPER_KEYS if isinstance(content.get(k), Mapping)), None)
    inner = content[wrapper] if wrapper else content
    tensors = {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UsageError(f"weights {path.name} contain no named tensors", fix="give a state dict of a network")
    parallel = all(name.startswith(DATA_PARALLEL_PREFIX) for name in tensors)
    if parallel:
        tensors = {name.removeprefix(DATA_PARALLEL_PREFIX): tensor for name, tensor in tensors.items()}
    return WeightFile(tensors=tensors, wrapper=wrapper, parallel=parallel)


def _require_bounded(path: Path) -> None:
    """Raise if a file, or what an archive of `torch.save` unpacks to, is larger than weights can be.

    Raises:
        DamagedError: it is, or it cannot be read.
    """
    try:
        require_bounded_archive(path, max_bytes=WEIGHTS_BYTES)
    except FileTooLargeError as error:
        raise DamagedError(
            f"weights {path.name} cannot be read: {error.strerror}", fix="give a file with the weights of one network"
        ) from error
    except (OSError, ValueError) as error:
        raise _unreadable(path) from error


def require_bounded_archive(path: Path, *, max_bytes: int) -> None:
    """Raise if a file, or what an archive of `torch.save` unpacks to, is larger than `max_bytes`.

    Raises:
        FileTooLargeError: it is.
        OSError: as in `open_regular`.
        ValueError: it is a damaged archive.
    """
    with open_regular(path, max_bytes=max_bytes) as stream:
        if path.suffix == ".safetensors" or not zipfile.is_zipfile(stream):
            return
        try:
            with zipfile.ZipFile(stream) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
        except zipfile.BadZipFile as error:
            raise ValueError(str(error)) from error
    if unpacked > max_bytes:
        raise FileTooLargeError(errno.EFBIG, f"unpacks to more than {max_bytes // 2**20} MiB", str(path))


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
            f"weights {path.name} are not trusted: the file contains more than tensors or is not a checkpoint; no code "
            "in it was executed",
            fix="give a file with tensors only, preferably a .safetensors converted where the checkpoint is trusted",
        ) from error
    except (*TORCH_READ_ERRORS, OSError) as error:
        raise _unreadable(path) from error
    if not isinstance(content, Mapping):
        raise UsageError(
            f"weights {path.name} are not a mapping of names to tensors", fix="give a state dict of a network"
        )
    return content


def _unreadable(path: Path) -> DamagedError:
    return DamagedError(f"weights {path.name} cannot be read", fix="download the file again")
