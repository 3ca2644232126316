"""Matches the tensors of a weight file to an encoder by name, and reports which were loaded, dropped or missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from tmi.toolkit.errors import UsageError
from tmi.toolkit.storage.serialization import to_json
from tmi.training.pretrained.origin import UNKNOWN

MIN_MATCHED_FRACTION = 0.5
"""Minimum fraction of an encoder's parameters that a file must fill."""
BATCH_COUNTER = "num_batches_tracked"
"""BatchNorm's counter: old files lack it, and it is not used."""


@dataclass(frozen=True, kw_only=True)
class WeightReport:
    """Report of the weights loaded from a file into one encoder."""

    encoder: Literal["ct", "text"]
    """Encoder."""
    file: str
    """Name of the file, without its folder."""
    sha256: str
    """SHA-256 of the file."""
    layout: str
    """Layout of the file: `hara`, `medicalnet`, `resnet` or `bert`."""
    wrapper: str | None
    """Key under which the weights are stored."""
    prefix: str
    """Prefix removed from the names."""
    taken: tuple[str, ...]
    """Encoder tensors filled from the file."""
    adapted: dict[str, str]
    """Those of `taken` that were changed, and how."""
    dropped: tuple[str, ...]
    """Tensors of the file without a counterpart in the encoder."""
    missing: tuple[str, ...]
    """Encoder tensors that keep their random initialisation."""
    origin: dict[str, Any] = field(default_factory=lambda: dict(UNKNOWN))
    """Where the file comes from (`tmi.training.pretrained.origin`)."""

    def summary(self) -> str:
        """One line for the log."""
        return (
            f"{self.encoder} encoder: {self.file} ({self.layout}): {len(self.taken)} tensors loaded, "
            f"{len(self.adapted)} of them adapted, {len(self.dropped)} dropped, {len(self.missing)} missing"
        )

    def document(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return to_json(self)


@dataclass(frozen=True, kw_only=True)
class MatchedWeights:
    """Tensors matched to an encoder by name."""

    state: Mapping[str, Tensor]
    """Name in the encoder -> tensor."""
    dropped: tuple[str, ...]
    """Tensors of the file without a counterpart in the encoder."""
    missing: tuple[str, ...]
    """Encoder tensors without a counterpart in the file, BatchNorm counters excluded."""


def match_tensors(
    tensors: Mapping[str, tuple[str, Tensor]], parameters: Mapping[str, Tensor], *, optional: str, file: str, sizes: str
) -> MatchedWeights:
    """Match tensors to an encoder by name and shape.

    Args:
        tensors: name in the encoder -> name in the file and tensor.
        parameters: state dict of the encoder, for the shapes; tensors on the meta device suffice.
        optional: prefix of encoder tensors that a file need not fill; they count neither as missing nor as filled.
        file: name of the file, for errors.
        sizes: settings that determine the encoder's sizes, for errors.

    Raises:
        UsageError: a shape differs, or too few of the encoder's parameters are filled.
    """

    def is_optional(name: str) -> bool:
        return bool(optional) and name.startswith(optional)

    state: dict[str, Tensor] = {}
    dropped = []
    for name, (original, tensor) in tensors.items():
        if name not in parameters or is_optional(name):
            dropped.append(original)
            continue
        if tensor.shape != parameters[name].shape:
            raise UsageError(
                f"weights {file}: {original} has shape {_shape(tensor)}, the encoder expects "
                f"{_shape(parameters[name])}",
                fix=f"give weights of the encoder's size, or set its size ({sizes})",
            )
        state[name] = tensor
    sizes_by_name = {
        name: p.numel() for name, p in parameters.items() if not name.endswith(BATCH_COUNTER) and not is_optional(name)
    }
    filled, total = sum(n for name, n in sizes_by_name.items() if name in state), sum(sizes_by_name.values())
    if filled < MIN_MATCHED_FRACTION * total:
        raise UsageError(
            f"weights {file} match {len(state)} of the encoder's {len(sizes_by_name)} tensors, {filled / total:.0%} of "
            "its parameters: too few to be of use",
            fix="give weights of the same kind of network",
        )
    missing = tuple(name for name in sizes_by_name if name not in state)
    return MatchedWeights(state=state, dropped=tuple(dropped), missing=missing)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
