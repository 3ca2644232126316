"""Check of an ONNX graph before an engine parses it, without the package `onnx`.

Engines are native code, and a malformed graph can crash them. A graph passes if it is what an export writes: one graph
without subgraphs, functions and external files, operators of `OPERATORS` in topological order, initializers whose bytes
are those of their shapes, and the inputs and outputs of the manifest. Shapes between the nodes are not inferred; the
trial of the startup self-test covers them (`tmi.runtime.verification.trial`).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from tmi.runtime.bundle.manifest import GraphSpec, TensorSpec
from tmi.runtime.bundle.protobuf import BYTES, FIXED32, VARINT, ProtobufError, fields, signed, varints

OPERATORS = frozenset(
    "Abs Add And AveragePool BatchNormalization Cast Clip Concat Constant Conv Div Dropout Equal Erf Exp Expand "
    "Flatten Gather GatherElements Gelu Gemm GlobalAveragePool Greater Identity InstanceNormalization "
    "LayerNormalization Less Log LogSoftmax MatMul Max MaxPool Min Mul Neg Not Or Pow ReduceL2 ReduceLogSumExp "
    "ReduceMax ReduceMean ReduceSum Relu Reshape Shape Sigmoid Sign Slice Softmax Split Sqrt Squeeze Sub Tanh "
    "Transpose Unsqueeze Where DequantizeLinear QuantizeLinear".split()
)
"""Operators that a graph may contain: stateless, without files, subgraphs or randomness."""
OPSETS = range(17, 24)
"""Versions of the default operator set that are accepted; an export writes 20."""
ITEM_BYTES = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 16: 2}
"""ONNX data type -> bytes of an element: float32, uint8, int8, int32, int64, bool, float16, float64, bfloat16."""
DTYPES = {1: "float32", 7: "int64"}
MAX_RANK = 8
MAX_ATTRIBUTE = 2**31 - 1
"""Largest magnitude of an integer attribute; INT64 limits, which stand for "to the end", are accepted too."""
MAX_ATTRIBUTE_VALUES = 64
MAX_SHAPE_VALUES = 2**16
"""Number of elements up to which an integer initializer is checked as a shape, axis or index."""


class GraphRejectedError(RuntimeError):
    """A graph is not one that an export writes; engines report it as a file that they cannot load."""


def require_exported_graph(data: bytes, spec: GraphSpec) -> None:
    """Check an ONNX file.

    Args:
        data: bytes of the file.
        spec: its graph, with the inputs and outputs of the manifest.

    Raises:
        GraphRejectedError: the graph is not one that an export writes.
    """
    try:
        problem = next(_problems(memoryview(data), spec), None)
    except (ProtobufError, UnicodeDecodeError) as error:
        problem = f"it is not a protobuf message ({error})"
    if problem is not None:
        raise GraphRejectedError(f"graph {spec.name} is not one that tmi exports: {problem}")


@dataclass
class _Graph:
    """What later parts of a graph may refer to."""

    values: set[str] = field(default_factory=set)
    """Names that are defined so far."""
    nodes: list[memoryview] = field(default_factory=list)
    inputs: list[TensorSpec | None] = field(default_factory=list)
    outputs: list[TensorSpec | None] = field(default_factory=list)
    """None for a value that is no tensor of a known type."""


def _problems(model: memoryview, spec: GraphSpec) -> Iterator[str]:
    graphs = []
    for number, wire, value in fields(model):
        if number == 7:
            graphs.append(_bytes(value))
        elif number == 8:
            yield from _opset(_bytes(value))
        elif number in (20, 25):
            yield "it has functions or training steps"
        elif number == 1 and wire != VARINT:
            yield "its version is no number"
    if len(graphs) != 1:
        yield f"it has {len(graphs)} graphs"
        return
    yield from _graph_problems(graphs[0], spec)


def _opset(message: memoryview) -> Iterator[str]:
    domain, version = "", 0
    for number, _, value in fields(message):
        if number == 1:
            domain = _text(value)
        elif number == 2 and isinstance(value, int):
            version = value
    if domain not in ("", "ai.onnx") or version not in OPSETS:
        yield f"it needs operator set {domain!r} {version}"


def _graph_problems(message: memoryview, spec: GraphSpec) -> Iterator[str]:
    graph = _Graph()
    for number, _, value in fields(message):
        if number == 1:
            graph.nodes.append(_bytes(value))
        elif number == 5:
            name, problem = _tensor(_bytes(value))
            if problem is None and (not name or name in graph.values):
                problem = "its name is missing or used twice"
            if problem is not None:
                yield f"initializer {name[:80]!r}: {problem}"
            graph.values.add(name)
        elif number == 11:
            graph.inputs.append(_value(_bytes(value)))
        elif number == 12:
            graph.outputs.append(_value(_bytes(value)))
        elif number in (14, 15):
            yield "it has sparse or quantized tensors"
    if graph.inputs != list(spec.inputs) or graph.outputs != list(spec.outputs):
        yield "its inputs and outputs are not those of the manifest"
        return
    graph.values |= {t.name for t in spec.inputs} | {""}
    for node in graph.nodes:
        yield from _node(node, graph.values)
    if not {t.name for t in spec.outputs} <= graph.values:
        yield "no node computes one of its outputs"


def _node(message: memoryview, values: set[str]) -> Iterator[str]:
    """Problems of a node; its outputs are added to `values`."""
    operator, domain, inputs, outputs, attributes = "", "", [], [], []
    for number, _, value in fields(message):
        if number == 1:
            inputs.append(_text(value))
        elif number == 2:
            outputs.append(_text(value))
        elif number == 4:
            operator = _text(value)
        elif number == 5:
            attributes.append(_bytes(value))
        elif number == 7:
            domain = _text(value)
    if domain not in ("", "ai.onnx") or operator not in OPERATORS:
        yield f"it has the operator {domain[:40]}:{operator[:40]}"
    if missing := [name for name in inputs if name not in values]:
        yield f"a node {operator} reads {missing[0][:80]!r}, which is not computed before it"
    names = [name for name in outputs if name]
    if not names or len(set(names)) != len(names) or not values.isdisjoint(names):
        yield f"a node {operator} has no output, or one that exists"
    values.update(names)
    for attribute in attributes:
        if (problem := _attribute(attribute)) is not None:
            yield f"an attribute of a node {operator}: {problem}"


def _attribute(message: memoryview) -> str | None:
    """Problem of an attribute: only numbers, texts and tensors of plausible sizes are accepted."""
    integers: list[int] = []
    for number, wire, value in fields(message):
        if number in (6, 10, 11, 14, 15, 22, 23):  # graphs, tensors, types, sparse tensors, references
            return "it holds a graph, a type or several tensors"
        if number == 5 and (problem := _tensor(_bytes(value))[1]) is not None:
            return problem
        if number in (3, 8):
            integers += [signed(value)] if isinstance(value, int) else list(map(signed, varints(_bytes(value))))
        elif number in (2, 7) and isinstance(value, memoryview):
            if wire == FIXED32 and not math.isfinite(struct.unpack("<f", value)[0]):
                return "a number is not finite"
            if len(value) > 4 * MAX_ATTRIBUTE_VALUES:
                return "it has too many numbers"
    if len(integers) > MAX_ATTRIBUTE_VALUES:
        return "it has too many numbers"
    return _implausible(integers)


def _implausible(integers: list[int]) -> str | None:
    limits = (2**63 - 1, -(2**63), -(2**63) + 1)
    wrong = [i for i in integers if abs(i) > MAX_ATTRIBUTE and i not in limits]
    return f"the number {wrong[0]} is too large" if wrong else None


def _tensor(message: memoryview) -> tuple[str, str | None]:
    """Name of a tensor, and the problem with it: its bytes must be exactly those of its shape and type."""
    name, kind, shape, raw = "", 0, [], None
    for number, _, value in fields(message):
        if number == 1:
            shape += [signed(value)] if isinstance(value, int) else list(map(signed, varints(_bytes(value))))
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8:
            name = _text(value)
        elif number == 9:
            raw = _bytes(value)
        elif number in (13, 14) and value != 0:
            return name, "it is stored in another file"
        elif number not in (12, 16):
            return name, "its numbers are not stored as bytes"
    if kind not in ITEM_BYTES:
        return name, f"it has the data type {kind}"
    if len(shape) > MAX_RANK or min(shape, default=0) < 0:
        return name, "it has an impossible shape"
    count = math.prod(shape)
    if count * ITEM_BYTES[kind] != len(raw or b""):
        return name, f"it has {len(raw or b'')} bytes, its shape needs {count * ITEM_BYTES[kind]}"
    if kind == 7 and raw is not None and count <= MAX_SHAPE_VALUES:
        return name, _implausible(list(struct.unpack(f"<{count}q", raw)))
    return name, None


def _value(message: memoryview) -> TensorSpec | None:
    """Name, type and shape of an input or output; None if it is no tensor of a type that graphs exchange."""
    name, kind, shape = "", 0, None
    for number, _, value in fields(message):
        if number == 1:
            name = _text(value)
        elif number == 2:
            for inner, _, content in fields(_bytes(value)):
                if inner != 1:
                    return None
                for entry, _, part in fields(_bytes(content)):
                    if entry == 1 and isinstance(part, int):
                        kind = part
                    elif entry == 2:
                        shape = tuple(_dimension(_bytes(d)) for n, _, d in fields(_bytes(part)) if n == 1)
    dtype = DTYPES.get(kind)
    if dtype is None or shape is None:
        return None
    return TensorSpec(name=name, dtype="float32" if dtype == "float32" else "int64", shape=shape)


def _dimension(message: memoryview) -> int | str:
    size: int | str = -1
    for number, _, value in fields(message):
        if number == 1 and isinstance(value, int):
            size = signed(value)
        elif number == 2:
            size = _text(value)
    return size


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ProtobufError(f"a number where wire type {BYTES} is expected")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_bytes(value)).decode("utf-8")
