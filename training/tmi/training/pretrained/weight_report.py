"""What became of each tensor of a file of weights, and the rule by which tensors find their places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from tmi.toolkit.errors import UsageError
from tmi.toolkit.storage.serialization import to_json

MIN_MATCHED_FRACTION = 0.5
"""Part of an encoder's parameters that a file must fill to be of use."""
BATCH_COUNTER = "num_batches_tracked"
"""BatchNorm's counter: old files lack it and nothing reads it."""


@dataclass(frozen=True, kw_only=True)
class WeightReport:
    """What was taken from a file for one encoder."""

    encoder: Literal["ct", "text"]
    """Encoder."""
    file: str
    """Name of the file, without its folder."""
    sha256: str
    """Its digest."""
    layout: str
    """Whose layout it has: `hara`, `medicalnet`, `resnet` or `bert`."""
    wrapper: str | None
    """Key that the weights lay under."""
    prefix: str
    """What was taken off the names."""
    taken: tuple[str, ...]
    """Names in the encoder that the file fills."""
    adapted: dict[str, str]
    """Of these, the ones that were changed on the way, and how."""
    dropped: tuple[str, ...]
    """Names in the file that the encoder has no place for."""
    missing: tuple[str, ...]
    """Names in the encoder that keep their random weights."""

    def summary(self) -> str:
        """One line for people."""
        return (
            f"{self.encoder} encoder: {self.file} ({self.layout}): {len(self.taken)} tensors taken, "
            f"{len(self.adapted)} of them adapted, {len(self.dropped)} dropped, {len(self.missing)} missing"
        )

    def document(self) -> dict[str, Any]:
        """Plain JSON values."""
        return to_json(self)


@dataclass(frozen=True, kw_only=True)
class MatchedWeights:
    """Tensors in their places."""

    state: Mapping[str, Tensor]
    """Name in the encoder -> tensor."""
    dropped: tuple[str, ...]
    """Names of the file without a place."""
    missing: tuple[str, ...]
    """Places without a tensor, counters aside."""


def match_tensors(
    tensors: Mapping[str, tuple[str, Tensor]], parameters: Mapping[str, Tensor], *, optional: str, file: str, sizes: str
) -> MatchedWeights:
    """Put each tensor where its name belongs.

    Args:
        tensors: name in the encoder -> name in the file and tensor.
        parameters: the encoder's own state, for the shapes; tensors of the meta device do.
        optional: prefix of places that no file is expected to fill; they count neither as missing nor as filled.
        file: name of the file, for errors.
        sizes: which settings fix the encoder's sizes, for errors.

    Raises:
        UsageError: a tensor has another shape than its place, or too little of the encoder is filled.
    """

    def spare(name: str) -> bool:
        return bool(optional) and name.startswith(optional)

    state: dict[str, Tensor] = {}
    dropped = []
    for name, (original, tensor) in tensors.items():
        if name not in parameters or spare(name):
            dropped.append(original)
            continue
        if tensor.shape != parameters[name].shape:
            raise UsageError(
                f"weights {file}: {original} is {_shape(tensor)}, the encoder has {_shape(parameters[name])} there",
                fix=f"give weights of the encoder's size, or set its size ({sizes})",
            )
        state[name] = tensor
    wanted = {name: p.numel() for name, p in parameters.items() if not name.endswith(BATCH_COUNTER) and not spare(name)}
    filled = sum(n for name, n in wanted.items() if name in state)
    if filled < MIN_MATCHED_FRACTION * sum(wanted.values()):
        raise UsageError(
            f"weights {file}: {len(state)} of the encoder's {len(wanted)} tensors are in it, "
            f"{filled / sum(wanted.values()):.0%} of its parameters: nothing useful matched",
            fix="give weights of the same kind of network",
        )
    return MatchedWeights(state=state, dropped=tuple(dropped), missing=tuple(n for n in wanted if n not in state))


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
