"""Search of the layers that stay in float32: as few as the error budget allows.

The budget bounds the relative error of a graph's output against eager float32 on every input. Layers are ranked by
their own error in INT8 on the input of the largest error, because values beyond a calibrated range cost more than
rounding. Additions and pooling come first, which join what convolutions compute, and then the layers of the largest
error. The shortest prefix of this ranking that holds the budget stays in float32. It is found by doubling and
bisection, so that a graph of a hundred layers is measured about ten times at most.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from tmi.export.quantization.measuring import Inputs, layer_errors, outputs_of
from tmi.export.quantization.qdq import quantisable, quantised
from tmi.runtime.verification.parity import relative_error


@dataclass(frozen=True, kw_only=True)
class ProbeSet:
    """Inputs of one graph and its eager outputs [1,C], which belong together as one batch [B,C]."""

    name: str
    """What the inputs are, for the record."""
    inputs: Sequence[Inputs]
    """One case each."""
    expected_BC: NDArray[np.float32]
    """Eager float32 outputs."""


@dataclass(frozen=True, kw_only=True)
class Int8Plan:
    """Result of a search."""

    model: ModelProto
    """The quantised graph."""
    layers: tuple[str, ...]
    """Layers in INT8; empty if the budget allows none."""
    layers_in_float: Mapping[str, str]
    """Layer that stays in float32 -> reason."""
    error: float
    """Largest relative error over all probe sets."""
    steps: tuple[str, ...]
    """Steps of the search, one line each."""


def search_layers(
    model: ModelProto,
    magnitudes: Mapping[str, float],
    probes: Sequence[ProbeSet],
    budget: float,
    *,
    threads: int,
    candidates: Collection[str] | None = None,
    signed: bool = False,
) -> Int8Plan:
    """Quantise as many layers of a graph as the budget allows.

    Args:
        model: the graph of `folded_graph`.
        magnitudes: activation -> its largest magnitude on the calibration cases.
        probes: inputs to measure on.
        budget: largest accepted `relative_error` of any probe set.
        threads: threads of ONNX Runtime.
        candidates: layers to choose among; None: all that can be quantised. The others stay in float32.
        signed: as in `quantised`.
    """
    layers = [layer for layer in quantisable(model) if candidates is None or layer in candidates]
    steps: list[str] = []
    errors: dict[int, float] = {}
    worst: dict[int, Inputs] = {}

    def without(count: int) -> ModelProto:
        return quantised(model, magnitudes, set(layers) - set(ranked[:count]), signed=signed)

    def error_without(count: int) -> float:
        if count not in errors:
            candidate = without(count)
            found = [_error(candidate, probe, threads) for probe in probes]
            error, worst[count] = max(found, key=lambda pair: pair[0])
            errors[count] = error
            steps.append(
                f"{len(layers) - count} of {len(layers)} layers in INT8: error {error:.2g}, allowed {budget:.2g}"
            )
        return errors[count]

    ranked: list[str] = []
    own: dict[str, float] = {}
    count = 0
    if error_without(0) > budget:
        own = layer_errors(model, magnitudes, worst[0], threads=threads, signed=signed)
        convolutions = {node.name for node in model.graph.node if node.op_type == "Conv"}
        ranked = sorted(layers, key=lambda layer: (layer in convolutions, -own[layer]))
        failing, count = 0, 1
        while count < len(layers) and error_without(count) > budget:
            failing, count = count, min(2 * count, len(layers))
        while count - failing > 1:
            middle = (count + failing) // 2
            failing, count = (failing, middle) if error_without(middle) <= budget else (middle, count)
    error = error_without(count)
    kept = set(ranked[:count])
    return Int8Plan(
        model=without(count),
        layers=tuple(layer for layer in layers if layer not in kept),
        layers_in_float={layer: f"its own error in INT8 is {own[layer]:.2g}" for layer in ranked[:count]},
        error=error,
        steps=tuple(steps),
    )


def _error(model: ModelProto, probe: ProbeSet, threads: int) -> tuple[float, Inputs]:
    """Relative error of a probe set, and the input that causes it."""
    outputs_BC = np.concatenate(outputs_of(model, probe.inputs, threads=threads))
    error = relative_error(outputs_BC, probe.expected_BC)
    # With all other rows equal to the reference, the error of a row has the scale of the whole batch.
    rows = range(len(probe.inputs))
    alone = [relative_error(_only(row, outputs_BC, probe.expected_BC), probe.expected_BC) for row in rows]
    return error, probe.inputs[max(rows, key=alone.__getitem__)]


def _only(row: int, outputs_BC: NDArray[np.float32], expected_BC: NDArray[np.float32]) -> NDArray[np.float32]:
    copy = expected_BC.copy()
    copy[row] = outputs_BC[row]
    return copy
