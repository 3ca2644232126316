"""Format-independent summary of an exported file for the audits: tensors, normalisation nodes, signature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tmi.runtime.bundle.manifest import TensorSpec


@dataclass(frozen=True, kw_only=True)
class NormNode:
    """One normalisation node of a graph."""

    module: str
    """Name of the module, from the name of its scale: `a.b` for `a.b.weight`; empty if the scale has no name."""
    epsilon: float
    """Its epsilon."""


@dataclass(frozen=True, kw_only=True)
class GraphSummary:
    """Contents of an exported file, read from the disk."""

    tensors: Mapping[str, NDArray[np.floating]]
    """Floating-point parameters and constants that the graph's nodes read, by name."""
    norms: tuple[NormNode, ...]
    """Layer, batch, group and instance norms."""
    inputs: tuple[TensorSpec, ...] | None
    """Declared inputs; None if the format declares none."""
    outputs: tuple[TensorSpec, ...] | None
    """Declared outputs; None if the format declares none."""
