"""The float32 form of a graph that is quantised: batch norms inside the convolutions, the input read in blocks.

A quantised convolution needs its batch norm inside: rounded weights are those of the product of both. Norms are folded
in float64. `tmi.export.quantization.stem` describes the blocks.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, numpy_helper

from tmi.export.quantization.stem import read_blocks

NONNEGATIVE = "tmi.nonnegative_input"
"""Entry of a model's metadata: no value of its input is negative, because volumes are scaled to such a range."""


def folded_graph(path: Path, *, nonnegative: bool = False) -> ModelProto:
    """Read a float32 graph, fold its batch norms, read its input in blocks, and name every node.

    A batch norm is folded if it is the only consumer of a convolution with constant weights; others stay.

    Args:
        path: the file.
        nonnegative: whether no prepared volume has a negative value.
    """
    model = onnx.load(path)
    if nonnegative:
        model.metadata_props.add(key=NONNEGATIVE, value="1")
    graph = model.graph
    for index, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    tensors = constants(graph)
    outputs = {o.name for o in graph.output}
    for conv in [n for n in graph.node if n.op_type == "Conv"]:
        output = conv.output[0]
        norm = readers[output][0] if output not in outputs and len(readers.get(output, [])) == 1 else None
        if norm is not None and norm.op_type == "BatchNormalization" and _is_constant(conv, norm, tensors):
            _fold(graph, conv, norm, tensors)
    read_blocks(graph)
    _drop_unread(graph)
    return model


def constants(graph: GraphProto) -> dict[str, NDArray[np.generic]]:
    """Initializers of a graph by name."""
    return {t.name: numpy_helper.to_array(t) for t in graph.initializer}


def _is_constant(conv: NodeProto, norm: NodeProto, tensors: dict[str, NDArray[np.generic]]) -> bool:
    return all(name in tensors for name in (*conv.input[1:], *norm.input[1:]) if name)


def _fold(graph: GraphProto, conv: NodeProto, norm: NodeProto, tensors: dict[str, NDArray[np.generic]]) -> None:
    scale, shift, mean, variance = (tensors[name].astype(np.float64) for name in norm.input[1:5])
    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
    factor = scale / np.sqrt(variance + epsilon)
    weight = tensors[conv.input[1]].astype(np.float64)
    bias = tensors[conv.input[2]].astype(np.float64) if len(conv.input) > 2 else np.zeros_like(mean)
    names = f"{conv.input[1]}.folded", f"{conv.input[1]}.folded_bias"
    values = weight * factor.reshape(-1, *[1] * (weight.ndim - 1)), (bias - mean) * factor + shift
    for name, value in zip(names, values, strict=True):
        graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    del conv.input[1:]
    conv.input.extend(names)
    conv.output[0] = norm.output[0]
    graph.node.remove(norm)


def _drop_unread(graph: GraphProto) -> None:
    """Remove the initializers that no node reads any more, and what is recorded of values between nodes."""
    read = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    for tensor in [t for t in graph.initializer if t.name not in read]:
        graph.initializer.remove(tensor)
    del graph.value_info[:]
