"""A float32 ONNX graph as a strongly typed FP16 graph: TensorRT 11 takes the precision from the graph and nowhere else.

Every floating-point node computes in FP16 but those that are kept in float32:

- operators whose sums or exponentials leave FP16's range or resolution (`FLOAT32_OPS`);
- nodes with a weight beyond 65,504, which FP16 cannot hold;
- nodes named by the caller (`tmi.export.tensorrt.mixed_precision_search`).

The graph's inputs and outputs keep their types, so an engine's contract does not change. Weights keep their names and
are rounded to nearest. Between two neighbours that stay in float32 nothing passes through FP16.

A batch norm's four parameters are FP16 where it is: ONNX would allow float32 beside an FP16 input, but TensorRT's
parser then casts them to FP16 and computes sqrt(variance + epsilon) in FP16, out of 25 layers instead of one.
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
    "Exp": "leaves the range above 11",
    "Pow": "leaves the range early",
    "Range": "positions need whole numbers beyond 2048",
}
"""Operator -> why it stays in float32."""
VARIANCE_INPUT = 4
"""Position of the running variance among a batch norm's inputs."""
MIN_FP16_VARIANCE = 2.0**-14
"""FP16's smallest normal number: below it a variance loses digits, and its root is divided by."""


@dataclass(frozen=True, kw_only=True)
class Fp16Graph:
    """A strongly typed FP16 graph."""

    model: ir.Model
    """The graph."""
    kept: Mapping[str, str]
    """Node that stayed in float32 -> why."""
    half: int
    """Floating-point nodes that compute in FP16."""


def read_typed(path: Path) -> ir.Model:
    """An ONNX file with the type of every value inferred.

    Raises:
        RuntimeError: a floating-point value has no type, or a node has a subgraph: neither can be converted safely.
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
    """Nodes that read or write float32, in the graph's order."""
    return [n for n in model.graph if any(_is_single(v) for v in (*n.inputs, *n.outputs))]


def unsafe_nodes(model: ir.Model) -> dict[str, str]:
    """Nodes of a float32 graph that FP16 is not safe for whatever the inputs are -> why."""
    found: dict[str, str] = {}
    for node in float_nodes(model):
        reason = FLOAT32_OPS.get(node.op_type)
        heavy = next((v for v in _weights(node) if _max_magnitude(v) > FP16_MAX), None)
        if reason is not None:
            found[str(node.name)] = f"{node.op_type}: {reason}"
        elif heavy is not None:
            found[str(node.name)] = (
                f"{node.op_type}: {heavy.name} holds {_max_magnitude(heavy):.3g}, beyond FP16's 65504"
            )
        elif node.op_type == "BatchNormalization" and _min_element(node.inputs[VARIANCE_INPUT]) < MIN_FP16_VARIANCE:
            found[str(node.name)] = "BatchNormalization: a running variance is below FP16's smallest normal number"
    return found


def to_fp16(path: Path, *, keep: Mapping[str, str] | None = None) -> Fp16Graph:
    """The FP16 graph of a float32 file.

    Args:
        path: float32 ONNX file.
        keep: further nodes to keep in float32 -> why; other names are ignored.

    Raises:
        RuntimeError: the graph cannot be converted.
    """
    model = read_typed(path)
    nodes = float_nodes(model)
    kept = unsafe_nodes(model) | {n: why for n, why in (keep or {}).items() if n in {node.name for node in nodes}}
    _round_weights(model, kept)
    conversion = _Conversion(model, kept)
    for node in nodes:
        conversion.convert(node)
    conversion.restore_outputs()
    passes.TopologicalSortPass()(model)
    return Fp16Graph(model=model, kept=kept, half=len(nodes) - len(kept))


def save(model: ir.Model, path: Path) -> None:
    """Write with weights inside and check the file.

    Raises:
        RuntimeError: the file is not valid ONNX.
    """
    ir.save(model, path)
    try:
        onnx.checker.check_model(path)
    except onnx.checker.ValidationError as error:
        raise RuntimeError(f"the FP16 graph is not valid ONNX: {error}") from error


class _Conversion:
    """Retypes a graph node by node, in order: what a node reads already has its final type."""

    def __init__(self, model: ir.Model, kept: Collection[str]) -> None:
        self.graph, self.kept = model.graph, kept
        self._casts: dict[tuple[int, ir.DataType], ir.Value] = {}

    def convert(self, node: ir.Node) -> None:
        """Give one node its inputs in its precision, and type its outputs."""
        target = FLOAT32_TYPE if node.name in self.kept else FLOAT16_TYPE
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in (FLOAT16_TYPE, FLOAT32_TYPE) and value.dtype != target:
                node.replace_input_with(index, self._cast(value, target, node))
        if target == FLOAT16_TYPE:
            _retype_attributes(node)
            for value in node.outputs:
                if value.dtype == FLOAT32_TYPE:
                    value.dtype = FLOAT16_TYPE

    def restore_outputs(self) -> None:
        """The graph's outputs are float32 under their old names."""
        for index, value in enumerate(self.graph.outputs):
            if value.dtype == FLOAT16_TYPE:
                name = value.name
                value.name = f"{name}_fp16"
                cast = _cast_node(value, FLOAT32_TYPE, str(name))
                self.graph.append(cast)
                self.graph.outputs[index] = cast.outputs[0]

    def _cast(self, value: ir.Value, wanted: ir.DataType, before: ir.Node) -> ir.Value:
        key = (id(value), wanted)
        if key not in self._casts:
            suffix = "fp16" if wanted == FLOAT16_TYPE else "fp32"
            node = _cast_node(value, wanted, f"{value.name}_to_{suffix}")
            self.graph.insert_before(before, node)
            self._casts[key] = node.outputs[0]
        return self._casts[key]


def _cast_node(value: ir.Value, wanted: ir.DataType, name: str) -> ir.Node:
    output = ir.Value(name=name, type=ir.TensorType(wanted), shape=value.shape)
    return ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(wanted))], outputs=[output], name=f"cast_{name}")


def _round_weights(model: ir.Model, kept: Collection[str]) -> None:
    """Weights that FP16 nodes alone read become FP16; one that both kinds read stays float32 and is cast."""
    for value in model.graph.initializers.values():
        if value.dtype == FLOAT32_TYPE and not value.is_graph_output():
            uses = value.uses()
            if uses and all(use.node.name not in kept for use in uses):
                assert value.const_value is not None
                value.const_value = ir.tensor(value.const_value.numpy().astype(np.float16), name=value.name)
                value.dtype = FLOAT16_TYPE


def _retype_attributes(node: ir.Node) -> None:
    """An FP16 node that makes its own float32 values makes FP16 ones."""
    for name in ("to", "dtype"):
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.type == ir.AttributeType.INT and attribute.as_int() == int(FLOAT32_TYPE):
            node.attributes[name] = ir.AttrInt64(name, int(FLOAT16_TYPE))
    value = node.attributes.get("value")
    if value is not None and value.type == ir.AttributeType.TENSOR and value.as_tensor().dtype == FLOAT32_TYPE:
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(value.as_tensor().numpy().astype(np.float16)))


def _weights(node: ir.Node) -> list[ir.Value]:
    return [v for v in node.inputs if v is not None and _is_single(v) and v.const_value is not None]


def _min_element(value: ir.Value | None) -> float:
    """Smallest element of a constant; 0 where it is none, which nothing can be said of."""
    return float(value.const_value.numpy().min()) if value is not None and value.const_value is not None else 0.0


def _max_magnitude(value: ir.Value) -> float:
    """Largest magnitude in a constant; infinite and NaN count as infinite."""
    assert value.const_value is not None
    array = value.const_value.numpy()
    if array.size == 0:
        return 0.0
    largest = float(np.abs(array).max())
    return largest if np.isfinite(largest) else float("inf")


def _is_single(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == FLOAT32_TYPE
