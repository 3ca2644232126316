"""Reader that summarises an ONNX file as `GraphSummary`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from tmi.export.checks.graph_summary import GraphSummary, NormNode
from tmi.runtime.bundle.manifest import TensorSpec

NORMS = ("LayerNormalization", "BatchNormalization", "GroupNormalization", "InstanceNormalization")
DEFAULT_EPSILON = 1e-5
"""ONNX's default for each of `NORMS`."""
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
DTYPES = {TensorProto.FLOAT: "float32", TensorProto.INT64: "int64"}


def read_summary(path: Path) -> GraphSummary:
    """Read an ONNX file, including its subgraphs."""
    graph = onnx.load(path).graph
    nodes = list(_nodes(graph))
    consumed = {name for node in nodes for name in node.input} | {o.name for o in graph.output}
    tensors = {name: value for name, value in _tensors(graph, nodes) if name in consumed}
    return GraphSummary(
        tensors=tensors,
        norms=tuple(_norm(node) for node in nodes if node.op_type in NORMS),
        inputs=tuple(_tensor_spec(value) for value in graph.input),
        outputs=tuple(_tensor_spec(value) for value in graph.output),
    )


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


def _tensors(graph: GraphProto, nodes: list[NodeProto]) -> Iterator[tuple[str, NDArray[np.floating]]]:
    for tensor in graph.initializer:
        if tensor.data_type in FLOATS:
            yield tensor.name, numpy_helper.to_array(tensor)
    for node in nodes:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.type == AttributeProto.TENSOR and attribute.t.data_type in FLOATS:
                yield node.output[0], numpy_helper.to_array(attribute.t)


def _norm(node: NodeProto) -> NormNode:
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), DEFAULT_EPSILON)
    module, _, ending = node.input[1].rpartition(".")
    return NormNode(module=module if ending == "weight" else "", epsilon=epsilon)


def _tensor_spec(value: ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    return TensorSpec(
        name=value.name,
        dtype=DTYPES.get(kind.elem_type, TensorProto.DataType.Name(kind.elem_type).lower()),
        shape=tuple(d.dim_param or d.dim_value for d in kind.shape.dim),
    )
