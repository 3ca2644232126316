"""What an audit needs to know of an exported file, whatever its format: tensors, norms, signature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tmi.runtime.bundle.manifest import TensorSpec


@dataclass(frozen=True, kw_only=True)
class NormNode:
    """One normalisation in the graph."""

    module: str
    """Module it belongs to, by the name of its scale: `a.b` for `a.b.weight`; empty where the scale has no name."""
    epsilon: float
    """Its epsilon."""


@dataclass(frozen=True, kw_only=True)
class GraphSummary:
    """An exported file, read back from the disk."""

    tensors: Mapping[str, NDArray[np.floating]]
    """Floating-point tensors that the graph's nodes read, parameters and constants, by name."""
    norms: tuple[NormNode, ...]
    """Layer, batch, group and instance norms."""
    inputs: tuple[TensorSpec, ...] | None
    """Inputs as the file declares them; None where the format does not."""
    outputs: tuple[TensorSpec, ...] | None
    """Outputs likewise."""
