"""Conversion of a float32 ONNX graph to a strongly typed FP16 graph with some nodes excluded.

A strongly typed TensorRT network (the only kind in TensorRT 11) takes the precision of each layer from the types of the
graph. Every floating-point node is converted to FP16 except

- operators whose sums or exponentials exceed FP16's range or resolution (`FLOAT32_OPS`);
- nodes with a weight above 65,504, FP16's largest finite number;
- batch norms with a running variance below 2^-14, FP16's smallest normal number;
- nodes that the caller excludes (`tmi.export.tensorrt.mixed_precision_search`).

Graph inputs and outputs keep their types. Weights keep their names and are rounded to nearest. Casts are inserted only
between nodes of different precision, so a value between two float32 nodes is never rounded to FP16.

All four parameters of an FP16 batch norm are FP16. ONNX also allows float32 parameters with an FP16 input, but
TensorRT's parser then casts them to FP16 and expands the node into 25 layers that compute sqrt(variance + epsilon) in
FP16, instead of one layer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

FLOAT16_TYPE, FLOAT32_TYPE = ir.DataType.FLOAT16, ir.DataType.FLOAT
FP16_MAX = float(np.finfo(np.float16).max)
"""65,504, the largest finite FP16 number."""
FLOAT32_OPS: Mapping[str, str] = {
    "LayerNormalization": "squares and sums a whole row",
    "GroupNormalization": "squares and sums a whole group",
    "InstanceNormalization": "squares and sums a whole channel",
    "Softmax": "exponentials and their sum",
    "LogSoftmax": "exponentials and their sum",
    "ReduceSum": "sums without bound",
    "ReduceSumSquare": "sums squares without bound",
    "ReduceMean": "sums before it divides",
    "ReduceL2": "sums squares without bound",
    "ReduceLogSumExp": "exponentials and their sum",
    "GlobalAveragePool": "sums before it divides",
    "CumSum": "sums without bound",
    "Exp": "overflows FP16 above 11",
    "Pow": "overflows FP16 for moderate inputs",
    "Range": "FP16 has no exact integers beyond 2048",
}
"""Operator that is excluded from FP16 -> reason."""
VARIANCE_INPUT = 4
"""Position of the running variance among a batch norm's inputs."""
MIN_FP16_VARIANCE = 2.0**-14
"""FP16's smallest normal number. A smaller variance loses digits, and the batch norm divides by its root."""


@dataclass(frozen=True, kw_only=True)
class Fp16Graph:
    """A strongly typed FP16 graph."""

    model: ir.Model
    """The graph."""
    float32_nodes: Mapping[str, str]
    """Name of each node excluded from FP16 -> reason."""
    fp16_count: int
    """Number of floating-point nodes that compute in FP16."""


def read_typed(path: Path) -> ir.Model:
    """Load an ONNX file and infer the type of every value.

    Raises:
        RuntimeError: the type of a value cannot be inferred, or a node has a subgraph. Such a graph is not converted.
    """
    model = ir.load(path)
    passes.ShapeInferencePass()(model)
    for node in model.graph:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            raise RuntimeError(f"node {node.name} ({node.op_type}) has a subgraph, which is not converted to FP16")
        for value in node.outputs:
            if value.dtype is None:
                raise RuntimeError(f"the type of {value.name}, output of {node.op_type}, cannot be inferred")
    return model


def float_nodes(model: ir.Model) -> list[ir.Node]:
    """Nodes with a float32 input or output, in the graph's order."""
    return [n for n in model.graph if any(_is_float32(v) for v in (*n.inputs, *n.outputs))]


def unsafe_nodes(model: ir.Model) -> dict[str, str]:
    """Find the nodes of a float32 graph that are unsafe in FP16 for any input.

    Returns:
        Name of each such node -> reason.
    """
    unsafe: dict[str, str] = {}
    for node in float_nodes(model):
        reason = FLOAT32_OPS.get(node.op_type)
        too_large = next((v for v in _weights(node) if _max_magnitude(v) > FP16_MAX), None)
        if reason is not None:
            unsafe[str(node.name)] = f"{node.op_type}: {reason}"
        elif too_large is not None:
            unsafe[str(node.name)] = (
                f"{node.op_type}: {too_large.name} holds {_max_magnitude(too_large):.3g}, beyond FP16's 65504"
            )
        elif node.op_type == "BatchNormalization" and _min_element(node.inputs[VARIANCE_INPUT]) < MIN_FP16_VARIANCE:
            unsafe[str(node.name)] = "BatchNormalization: a running variance is below FP16's smallest normal number"
    return unsafe


def to_fp16(path: Path, *, float32_nodes: Mapping[str, str] | None = None) -> Fp16Graph:
    """Convert a float32 ONNX file to a strongly typed FP16 graph.

    Args:
        path: float32 ONNX file.
        float32_nodes: nodes to exclude from FP16 in addition to `unsafe_nodes` -> reason. Names that are not
            floating-point nodes of the graph are ignored.

    Raises:
        RuntimeError: the graph cannot be converted.
    """
    model = read_typed(path)
    nodes = float_nodes(model)
    names = {node.name for node in nodes}
    excluded = unsafe_nodes(model) | {name: why for name, why in (float32_nodes or {}).items() if name in names}
    _round_weights(model, excluded)
    conversion = _Conversion(model, excluded)
    for node in nodes:
        conversion.convert(node)
    conversion.restore_outputs()
    passes.TopologicalSortPass()(model)
    return Fp16Graph(model=model, float32_nodes=excluded, fp16_count=len(nodes) - len(excluded))


def save(model: ir.Model, path: Path) -> None:
    """Write an ONNX file with its weights inside, and validate it.

    Raises:
        RuntimeError: the file is not valid ONNX.
    """
    ir.save(model, path)
    try:
        onnx.checker.check_model(path)
    except onnx.checker.ValidationError as error:
        raise RuntimeError(f"the FP16 graph is not valid ONNX: {error}") from error


class _Conversion:
    """Retypes a graph node by node in topological order, so that a node's inputs already have their final types."""

    def __init__(self, model: ir.Model, float32_nodes: Collection[str]) -> None:
        self.graph, self.float32_nodes = model.graph, float32_nodes
        self._casts: dict[tuple[int, ir.DataType], ir.Value] = {}

    def convert(self, node: ir.Node) -> None:
        """Cast the inputs of a node to its precision and set the types of its outputs."""
        target = FLOAT32_TYPE if node.name in self.float32_nodes else FLOAT16_TYPE
        for index, value in enumerate(node.inputs):
            # Casts only where the precision changes; integer inputs (shapes, indices) stay as they are.
            if value is not None and value.dtype in (FLOAT16_TYPE, FLOAT32_TYPE) and value.dtype != target:
                node.replace_input_with(index, self._cast(value, target, node))
        if target == FLOAT16_TYPE:
            _retype_attributes(node)
            for value in node.outputs:
                if value.dtype == FLOAT32_TYPE:
                    value.dtype = FLOAT16_TYPE

    def restore_outputs(self) -> None:
        """Cast FP16 graph outputs back to float32 under their original names."""
        for index, value in enumerate(self.graph.outputs):
            if value.dtype == FLOAT16_TYPE:
                name = value.name
                # The cast takes over the output's name, so the FP16 value needs another one.
                value.name = f"{name}_fp16"
                cast = _cast_node(value, FLOAT32_TYPE, str(name))
                self.graph.append(cast)
                self.graph.outputs[index] = cast.outputs[0]

    def _cast(self, value: ir.Value, dtype: ir.DataType, before: ir.Node) -> ir.Value:
        # One cast serves all consumers: the first one precedes the others in topological order.
        key = (id(value), dtype)
        if key not in self._casts:
            suffix = "fp16" if dtype == FLOAT16_TYPE else "fp32"
            node = _cast_node(value, dtype, f"{value.name}_to_{suffix}")
            self.graph.insert_before(before, node)
            self._casts[key] = node.outputs[0]
        return self._casts[key]


def _cast_node(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    output = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape)
    return ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(dtype))], outputs=[output], name=f"cast_{name}")


def _round_weights(model: ir.Model, float32_nodes: Collection[str]) -> None:
    """Round weights to FP16 if only FP16 nodes read them. Weights with a float32 consumer stay float32 and are cast."""
    for value in model.graph.initializers.values():
        if value.dtype == FLOAT32_TYPE and not value.is_graph_output():
            uses = value.uses()
            if uses and all(use.node.name not in float32_nodes for use in uses):
                assert value.const_value is not None
                value.const_value = ir.tensor(value.const_value.numpy().astype(np.float16), name=value.name)
                value.dtype = FLOAT16_TYPE


def _retype_attributes(node: ir.Node) -> None:
    """Change the attributes of an FP16 node that name float32 (Cast, ConstantOfShape, Constant) to FP16."""
    for name in ("to", "dtype"):
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.type == ir.AttributeType.INT and attribute.as_int() == int(FLOAT32_TYPE):
            node.attributes[name] = ir.AttrInt64(name, int(FLOAT16_TYPE))
    value = node.attributes.get("value")
    if value is not None and value.type == ir.AttributeType.TENSOR and value.as_tensor().dtype == FLOAT32_TYPE:
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(value.as_tensor().numpy().astype(np.float16)))


def _weights(node: ir.Node) -> list[ir.Value]:
    return [v for v in node.inputs if v is not None and _is_float32(v) and v.const_value is not None]


def _min_element(value: ir.Value | None) -> float:
    """Smallest element of a constant; 0 for a value that is not a constant, so that it counts as unsafe."""
    return float(value.const_value.numpy().min()) if value is not None and value.const_value is not None else 0.0


def _max_magnitude(value: ir.Value) -> float:
    """Largest magnitude in a constant; infinity if it has infinities or NaN."""
    assert value.const_value is not None
    array = value.const_value.numpy()
    if array.size == 0:
        return 0.0
    largest = float(np.abs(array).max())
    return largest if np.isfinite(largest) else float("inf")


def _is_float32(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == FLOAT32_TYPE
