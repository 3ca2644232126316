"""Audit of a written INT8 file against the float32 file and the calibration cases. It trusts nothing of the search.

The float32 file is read and folded again, and the magnitudes are measured again. Rounded weights, scales, zero points
and every other tensor of the INT8 file must then be what symmetric rounding gives. A signed file has the magnitudes of
the graph's INT8 file, which were measured again when that one was written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from tmi.export.graphs.registry import TYPED
from tmi.export.quantization.folding import constants, folded_graph
from tmi.export.quantization.measuring import Inputs, largest_magnitudes
from tmi.export.quantization.qdq import DEQUANTISED, STEPS, WEIGHT, channel_magnitudes, step, unsigned
from tmi.runtime.bundle.check_result import CheckResult
from tmi.runtime.bundle.manifest import GraphSpec

ARTEFACT = "onnx-int8"
"""Artefact kind of quantised graphs."""
RELATIVE = 1e-3
"""Tolerance of a scale against the one that is computed again: float32 rounding on another number of threads."""
MIN_CASES = 2
"""Smallest number of different calibration volumes of a graph."""


def audit_calibration(spec: GraphSpec, volumes: Sequence[NDArray[np.float32]]) -> CheckResult:
    """Check that a graph is calibrated on several different volumes, none of them constant."""
    constant = sum(bool(volume.min() == volume.max()) for volume in volumes)
    different = len({volume.tobytes() for volume in volumes})
    mismatches = [f"{constant} of {len(volumes)} calibration volumes are constant"] if constant else []
    if different < MIN_CASES:
        mismatches.append(f"{different} different calibration volumes, {MIN_CASES} are needed")
    return _record("calibration", spec, mismatches, f"{different} different volumes")


def audit_quantised(
    path: Path,
    float32: Path,
    spec: GraphSpec,
    inputs: Sequence[Inputs],
    stated: Mapping[str, float],
    *,
    threads: int,
) -> CheckResult:
    """Check every tensor of a written INT8 file.

    Args:
        path: the INT8 file.
        float32: the float32 file of the graph.
        spec: the graph.
        inputs: its inputs of the calibration cases.
        stated: activation -> largest magnitude by which it was quantised.
        threads: threads of ONNX Runtime.
    """
    nonnegative = all(bool(value.min() >= 0) for case in inputs for value in case.values())
    model, folded = onnx.load(path), folded_graph(float32, nonnegative=nonnegative)
    magnitudes = largest_magnitudes(folded, inputs, threads=threads)
    mismatches = [
        *(
            f"the stated range of {name} is {stated.get(name, 0.0) / value:.3g} times the measured one"
            for name, value in magnitudes.items()
            if not np.isclose(stated.get(name, 0.0), value, rtol=RELATIVE, atol=0)
        ),
        *_layer_mismatches(model, folded),
        *_tensor_mismatches(model, folded, magnitudes),
    ]
    return _record("quantisation", spec, mismatches, _summary(model))


def audit_signed(
    path: Path, float32: Path, spec: GraphSpec, magnitudes: Mapping[str, float], *, nonnegative: bool
) -> CheckResult:
    """Check every tensor of a signed INT8 file, the source of a TensorRT plan.

    Args:
        path: the signed file.
        float32: the float32 file of the graph.
        spec: the graph.
        magnitudes: activation -> largest magnitude, as the manifest records it for the graph's INT8 file.
        nonnegative: as in `folded_graph`.
    """
    model, folded = onnx.load(path), folded_graph(float32, nonnegative=nonnegative)
    mismatches = [*_layer_mismatches(model, folded), *_tensor_mismatches(model, folded, magnitudes, signed_only=True)]
    return _record("quantisation", spec, mismatches, _summary(model), artefact=TYPED)


def _summary(model: ModelProto) -> str:
    pairs = sum(node.op_type == "DequantizeLinear" for node in model.graph.node)
    return f"{pairs} tensors are those of the float32 graph in 8 bits"


def _layer_mismatches(model: ModelProto, folded: ModelProto) -> Iterator[str]:
    """Differences of the nodes, without those that quantisation adds."""
    nodes = [n for n in model.graph.node if n.op_type not in ("QuantizeLinear", "DequantizeLinear")]
    if [n.name for n in nodes] != [n.name for n in folded.graph.node]:
        yield "its layers are not those of the float32 graph"
        return
    for node, expected in zip(nodes, folded.graph.node, strict=True):
        inputs = [name.removesuffix(DEQUANTISED) for name in node.input]
        same = node.op_type == expected.op_type and list(node.attribute) == list(expected.attribute)
        if not same or inputs != list(expected.input) or list(node.output) != list(expected.output):
            yield f"layer {node.name} is not that of the float32 graph"


def _tensor_mismatches(
    model: ModelProto, folded: ModelProto, magnitudes: Mapping[str, float], *, signed_only: bool = False
) -> Iterator[str]:
    tensors, originals = constants(model.graph), constants(folded.graph)
    positive = frozenset() if signed_only else unsigned(folded)
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        name = node.output[0].removesuffix(DEQUANTISED).removesuffix(WEIGHT)
        scale, zero = tensors[node.input[1]], tensors[node.input[2]]
        signed = name not in positive
        if zero.dtype != (np.int8 if signed else np.uint8) or zero.any():
            yield f"the zero point of {name} is {zero.dtype} {zero.reshape(-1)[0]}, not 0"
        weight = originals.get(name)
        source = name if node.op_type == "QuantizeLinear" else name + WEIGHT
        axes = [("axis", 0)] if weight is not None else []
        if node.input[0] != source or [(a.name, a.i) for a in node.attribute] != axes:
            yield f"{node.name} does not read {source} with its scales along the output channels"
            continue
        if weight is None:
            if name not in magnitudes:
                yield f"{name} is no activation of a layer"
                continue
            expected = step(magnitudes[name], signed=signed)
        else:
            expected = step(channel_magnitudes(weight))
        if scale.shape != expected.shape or not np.allclose(scale, expected, rtol=RELATIVE, atol=0):
            ratio = float(np.max(scale) / np.max(expected))
            yield f"the scale of {name} is {ratio:.3g} times that of its largest magnitude"
        elif weight is not None:
            yield from _weight_mismatches(name, tensors[node.input[0]], scale, weight)
    for name, value in tensors.items():
        if name in originals and value.tobytes() != originals[name].tobytes():
            yield f"{name} is not that of the float32 graph"


def _weight_mismatches(
    name: str, rounded: NDArray[np.generic], scale: NDArray[np.generic], weight: NDArray[np.generic]
) -> Iterator[str]:
    if rounded.dtype != np.int8 or rounded.shape != weight.shape:
        yield f"{name} is {rounded.dtype}{list(rounded.shape)}, not int8{list(weight.shape)}"
        return
    wide = scale.astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1))
    steps = np.abs(rounded.astype(np.float64) - weight.astype(np.float64) / wide)
    if steps.max() > 0.5 + STEPS * RELATIVE:
        yield f"{name} differs from the rounded weight by {steps.max():.2g} steps"


def _record(
    check: str, spec: GraphSpec, mismatches: Sequence[str], summary: str, *, artefact: str = ARTEFACT
) -> CheckResult:
    return CheckResult(
        check=check,
        artefact=artefact,
        graph=spec.name,
        passed=not mismatches,
        measured=float(len(mismatches)),
        bound=0.0,
        detail="; ".join(mismatches[:3]) or summary,
    )
