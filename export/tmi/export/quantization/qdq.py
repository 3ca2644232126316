"""Quantisation of a graph's layers: pairs of QuantizeLinear and DequantizeLinear at their inputs and weights.

Symmetric (zero point 0): weights are int8 with one scale for each output channel, activations behind a ReLU and volumes
that are never negative are uint8, others int8, and biases stay in float32. Signed graphs, for TensorRT, have no uint8.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from tmi.export.quantization.folding import NONNEGATIVE, constants

MOVING_OPS = ("MaxPool", "Reshape", "Transpose")
"""Operators that compute no new values of their first input."""
STEPS = 127
"""Number of steps on either side of zero."""
UNSIGNED_STEPS = 255
"""Number of steps of a tensor without negative values."""
WEIGHT, SCALE, ZERO, DEQUANTISED = ".int8", ".scale", ".zero_point", ".dequantized"
"""Endings of the names that quantisation adds."""


def quantisable(model: ModelProto) -> dict[str, tuple[str, ...]]:
    """Layer that can be quantised -> the activations that it reads, in the graph's order.

    Beside convolutions these are what would otherwise convert values between them to float32 and back: additions of
    residual blocks and max pooling. The global average is none of them: it takes no time, and a value beyond the
    calibrated range would change the features at once.
    """
    graph, positive = model.graph, unsigned(model)
    constant = {t.name for t in graph.initializer}
    found: dict[str, tuple[str, ...]] = {}
    convolved: set[str] = set()
    for node in graph.node:
        values = tuple(name for name in node.input if name not in constant)
        if node.op_type == "Conv" and node.input[1] in constant and node.input[0] not in constant:
            found[node.name] = (node.input[0],)
            convolved.update(node.output)
        elif node.op_type == "Add" and len(values) == 2 and convolved.intersection(values):
            found[node.name] = tuple(dict.fromkeys(values))
        elif node.op_type == "MaxPool" and node.input[0] in positive:
            found[node.name] = values
    return found


def unsigned(model: ModelProto) -> frozenset[str]:
    """Values without negative elements: outputs of ReLUs whatever the input, the input if the model states it."""
    stated = any(p.key == NONNEGATIVE for p in model.metadata_props)
    found = {i.name for i in model.graph.input} if stated else set[str]()
    for node in model.graph.node:
        if node.op_type == "Relu" or (node.op_type in MOVING_OPS and node.input[0] in found):
            found.update(node.output)
    return frozenset(found)


def quantised(
    model: ModelProto, magnitudes: Mapping[str, float], layers: Collection[str], *, signed: bool = False
) -> ModelProto:
    """A copy of a folded graph in which some layers compute in INT8.

    Args:
        model: the graph of `folded_graph`.
        magnitudes: activation -> its largest magnitude; it becomes the last step.
        layers: layers of `quantisable` to quantise.
        signed: round every activation to int8, also one without negative values, which then uses half of the steps.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    tensors = constants(graph)
    nodes, added = list(graph.node), dict[str, str]()
    activations, positive = quantisable(model), frozenset() if signed else unsigned(model)
    del graph.node[:]
    for node in nodes:
        if node.name in layers:
            for value in activations[node.name]:
                if value not in added:
                    added[value] = _quantise_activation(graph, value, magnitudes[value], signed=value not in positive)
            if node.op_type == "Conv" and node.input[1] not in added:
                added[node.input[1]] = _quantise_weight(graph, node.input[1], tensors[node.input[1]])
            inputs = [added.get(name, name) for name in node.input]
            del node.input[:]
            node.input.extend(inputs)
        graph.node.append(node)
    read = {name for node in graph.node for name in node.input}
    for tensor in [t for t in graph.initializer if t.name not in read]:
        graph.initializer.remove(tensor)
    return copy


def step(magnitude: float | NDArray[np.float32], *, signed: bool = True) -> NDArray[np.float32]:
    """Scale of a tensor of a largest magnitude; 1 where every value is zero."""
    scale = np.asarray(magnitude, dtype=np.float32) / np.float32(STEPS if signed else UNSIGNED_STEPS)
    return np.where(scale > 0, scale, np.float32(1)).astype(np.float32)


def channel_magnitudes(weight: NDArray[np.generic]) -> NDArray[np.float32]:
    """Largest magnitude of each output channel of a layer's weight."""
    largest: NDArray[np.float32] = np.abs(weight.reshape(weight.shape[0], -1)).max(axis=1).astype(np.float32)
    return largest


def _quantise_activation(graph: GraphProto, name: str, magnitude: float, *, signed: bool) -> str:
    zero = np.zeros((), np.int8 if signed else np.uint8)
    parameters = _add(graph, name + SCALE, step(magnitude, signed=signed)), _add(graph, name + ZERO, zero)
    quantize = helper.make_node("QuantizeLinear", [name, *parameters], [name + WEIGHT], f"{name}.quantize")
    graph.node.append(quantize)
    return _dequantise(graph, name, parameters, [])


def _quantise_weight(graph: GraphProto, name: str, weight: NDArray[np.generic]) -> str:
    scale = step(channel_magnitudes(weight))
    steps = weight.astype(np.float32) / scale.reshape(-1, *[1] * (weight.ndim - 1))
    _add(graph, name + WEIGHT, np.clip(np.rint(steps), -STEPS, STEPS).astype(np.int8))
    parameters = _add(graph, name + SCALE, scale), _add(graph, name + ZERO, np.zeros(scale.shape, np.int8))
    return _dequantise(graph, name, parameters, [("axis", 0)])


def _dequantise(graph: GraphProto, name: str, parameters: tuple[str, str], attributes: list[tuple[str, int]]) -> str:
    node: NodeProto = helper.make_node(
        "DequantizeLinear",
        [name + WEIGHT, *parameters],
        [name + DEQUANTISED],
        f"{name}.dequantize",
        **dict(attributes),
    )
    graph.node.append(node)
    return name + DEQUANTISED


def _add(graph: GraphProto, name: str, value: NDArray[np.generic]) -> str:
    graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name
