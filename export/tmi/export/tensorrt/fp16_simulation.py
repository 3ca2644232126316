"""Simulation of FP16 and TF32 arithmetic on a CPU: a float32 graph in which tensors are rounded as a GPU rounds them.

ONNX Runtime's CPU kernels keep float32 between FP16 operators, so they hide overflows that occur on a GPU. The
emulation inserts a cast to float16 and back (a quantize/dequantize pair) after each operator with an FP16 output:

    r = float32(float16(op(inputs)))

This equals an FP16 kernel with float32 accumulation. Operators that only move or select values are not rounded.
TensorRT fuses operators and rounds less often, so the emulation is the stricter one. For TF32, the inputs of
convolutions and matrix products are rounded to 11 significant bits by Veltkamp's splitting: c = 8193 x, r = c - (c - x)
(Dekker, Numer. Math. 18, 1971).

Probes record the range of each rounded tensor: its maximum, its minimum and its sum of squares. The sum of squares is
finite if and only if every element is: an FP16 value squared is at most 4.3e9, and float32 holds 7e28 such terms. The
reductions run inside the graph, because one tensor of the paper's configuration takes 1 GiB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnx_ir.passes import common as passes

from tmi.export.tensorrt.fp16_conversion import FLOAT16_TYPE, FLOAT32_TYPE, read_typed
from tmi.runtime.bundle.manifest import GraphSpec
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.graph_engine import GraphEngine
from tmi.runtime.engines.onnxruntime import ERRORS_ONLY, as_runtime_errors
from tmi.runtime.engines.precision import INT8, TF32, graph_precisions

DATA_MOVEMENT_OPS = frozenset(
    "Reshape Transpose Slice Concat Squeeze Unsqueeze Gather GatherElements GatherND Expand Split Identity Flatten "
    "MaxPool Relu Max Min Where Tile Pad".split()
)
"""Operators whose outputs contain only values of their inputs, or zeros."""
MATRIX_PRODUCT_OPS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
"""Operators whose inputs TF32 rounds."""
PROBE_REDUCTIONS: Mapping[str, str] = {"top": "ReduceMax", "bottom": "ReduceMin", "squares": "ReduceSumSquare"}
"""Name of each probe output -> its reduction."""
VELTKAMP_FACTOR = 8193.0
"""2^13 + 1: keeps 11 of float32's 24 significant bits."""


@dataclass(frozen=True, kw_only=True)
class TensorExtreme:
    """Largest magnitude of one FP16 tensor."""

    tensor: str
    """Name of the tensor."""
    node: str
    """Node that computes it."""
    operator: str
    """Operator of that node."""
    largest: float
    """Largest magnitude; infinity if an element was not finite."""

    @property
    def finite(self) -> bool:
        """Whether all elements were finite."""
        return bool(np.isfinite(self.largest))


@dataclass(frozen=True, kw_only=True)
class Emulation:
    """A float32 graph that emulates a graph of lower precision."""

    model: ir.Model
    """The graph. Its own outputs come first, then three scalars for each probe."""
    probes: Mapping[str, tuple[str, str]]
    """Rounded tensor -> node and operator that compute it."""


def emulate_fp16(model: ir.Model) -> Emulation:
    """Rewrite a strongly typed FP16 graph in place: all types become float32, and FP16 rounding becomes explicit."""
    graph = model.graph
    for value in graph.initializers.values():
        if value.dtype == FLOAT16_TYPE:
            assert value.const_value is not None
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
            value.dtype = FLOAT32_TYPE
    probes: dict[str, tuple[str, str]] = {}
    for node in list(graph):
        for value in [v for v in node.outputs if v.dtype == FLOAT16_TYPE]:
            value.dtype = FLOAT32_TYPE
            if node.op_type not in DATA_MOVEMENT_OPS:
                _add_probes(graph, str(value.name), _round_to_fp16(graph, node, value))
                probes[str(value.name)] = (str(node.name), node.op_type)
        _retype_attributes(node)
    passes.TopologicalSortPass()(model)
    return Emulation(model=model, probes=probes)


def emulate_tf32(model: ir.Model) -> Emulation:
    """Rewrite a float32 graph in place. TF32 has float32's range and cannot overflow earlier, so it has no probes."""
    graph = model.graph
    factor = ir.Value(name="tf32_split", type=ir.TensorType(FLOAT32_TYPE), shape=ir.Shape(()))
    factor.const_value = ir.tensor(np.float32(VELTKAMP_FACTOR), name="tf32_split")
    graph.register_initializer(factor)
    rounded: dict[int, ir.Value] = {}
    for node in list(graph):
        for index, value in enumerate(node.inputs[:2] if node.op_type in MATRIX_PRODUCT_OPS else ()):
            if value is not None and value.dtype == FLOAT32_TYPE:
                # Inputs 0 and 1 are the factors; a bias (input 2) is added in float32.
                if id(value) not in rounded:
                    rounded[id(value)] = _round_to_tf32(graph, node, value, factor)
                node.replace_input_with(index, rounded[id(value)])
    passes.TopologicalSortPass()(model)
    return Emulation(model=model, probes={})


@dataclass(frozen=True, kw_only=True)
class EmulationSession:
    """An emulation that is loaded into ONNX Runtime."""

    session: onnxruntime.InferenceSession
    """Session of the graph."""
    probes: Mapping[str, tuple[str, str]]
    """As in `Emulation`."""


class EmulationEngine(GraphEngine):
    """Engine that runs the emulation of a bundle's typed graphs. It is slow and used only for validation."""

    name = "fp16-emulation"

    def __init__(self) -> None:
        super().__init__()
        self._precisions: dict[str, str] = {}
        self._recorded: dict[str, dict[str, TensorExtreme]] | None = None

    @contextmanager
    def recording_extremes(self) -> Iterator[dict[str, dict[str, TensorExtreme]]]:
        """Record the extremes of all FP16 tensors while the block runs: graph -> tensor -> extreme."""
        self._recorded = {}
        try:
            yield self._recorded
        finally:
            self._recorded = None

    def _start(self, bundle: Bundle) -> None:
        self._precisions = graph_precisions(bundle.manifest)

    def _load(self, spec: GraphSpec, path: Path, read: Callable[[], bytes]) -> EmulationSession:
        model, precision = read_typed(path), self._precisions[spec.name]
        if precision == INT8:  # its rounding is explicit already
            return emulation_session(Emulation(model=model, probes={}), threads=self.threads)
        emulation = emulate_tf32(model) if precision == TF32 else emulate_fp16(model)
        return emulation_session(emulation, threads=self.threads)

    def _run(self, spec: GraphSpec, loaded: Any, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        outputs, extremes = run_emulation(loaded, [t.name for t in spec.outputs], inputs)
        if self._recorded is not None:
            recorded = self._recorded.setdefault(spec.name, {})
            for name, extreme in extremes.items():
                if name not in recorded or extreme.largest > recorded[name].largest:
                    recorded[name] = extreme
        return outputs


def emulation_session(emulation: Emulation, *, threads: int) -> EmulationSession:
    """Load an emulation into ONNX Runtime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A volume's tensors are large: run each probe next to its tensor, then free it; cache no memory between runs.
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    data = ir.to_proto(emulation.model).SerializeToString()
    with as_runtime_errors():
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return EmulationSession(session=session, probes=emulation.probes)


def run_emulation(
    loaded: EmulationSession, names: list[str], inputs: Mapping[str, NDArray[Any]]
) -> tuple[dict[str, NDArray[np.float32]], dict[str, TensorExtreme]]:
    """Run an emulation and return the named outputs and the extreme of every FP16 tensor."""
    probe_names = [f"{name}::{kind}" for name in loaded.probes for kind in PROBE_REDUCTIONS]
    with as_runtime_errors():
        arrays = loaded.session.run([*names, *probe_names], dict(inputs))
    # The same iterator three times: each probe takes its maximum, its minimum and its sum of squares.
    values = iter(arrays[len(names) :])
    extremes = {}
    for (name, (node, operator)), top, bottom, squares in zip(
        loaded.probes.items(), values, values, values, strict=True
    ):
        # Maximum and minimum may ignore NaN; the sum of squares does not.
        largest = max(abs(float(top)), abs(float(bottom))) if np.isfinite(squares) else float("inf")
        extremes[name] = TensorExtreme(tensor=name, node=node, operator=operator, largest=largest)
    return dict(zip(names, arrays, strict=False)), extremes


def _round_to_fp16(graph: ir.Graph, node: ir.Node, value: ir.Value) -> ir.Value:
    """Insert a cast to FP16 and back after `node`, and redirect all consumers of `value` to the rounded value."""
    users = list(value.uses())  # before the casts below become consumers too
    half = _value(f"{value.name}::half", FLOAT16_TYPE, value.shape)
    rounded = _value(f"{value.name}::rounded", FLOAT32_TYPE, value.shape)
    down = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(FLOAT16_TYPE))], outputs=[half], name=half.name)
    up = ir.Node("", "Cast", [half], [ir.AttrInt64("to", int(FLOAT32_TYPE))], outputs=[rounded], name=rounded.name)
    graph.insert_after(node, [down, up])
    for user, index in users:
        user.replace_input_with(index, rounded)
    return rounded


def _add_probes(graph: ir.Graph, name: str, rounded: ir.Value) -> None:
    """Add scalar graph outputs with the reductions of a rounded tensor."""
    producer = rounded.producer()
    assert producer is not None
    outputs = {kind: _value(f"{name}::{kind}", FLOAT32_TYPE, ir.Shape(())) for kind in PROBE_REDUCTIONS}
    scalar = [ir.AttrInt64("keepdims", 0)]
    graph.insert_after(
        producer,
        [
            ir.Node("", PROBE_REDUCTIONS[kind], [rounded], scalar, outputs=[v], name=v.name)
            for kind, v in outputs.items()
        ],
    )
    graph.outputs.extend(outputs.values())


def _round_to_tf32(graph: ir.Graph, node: ir.Node, value: ir.Value, factor: ir.Value) -> ir.Value:
    """Insert Veltkamp's splitting before `node` and return `value` rounded to 11 significant bits."""
    scaled, low, rounded = (_value(f"{value.name}::{part}", FLOAT32_TYPE, value.shape) for part in ("c", "low", "tf32"))
    graph.insert_before(
        node,
        [
            ir.Node("", "Mul", [value, factor], outputs=[scaled], name=scaled.name),
            ir.Node("", "Sub", [scaled, value], outputs=[low], name=low.name),
            ir.Node("", "Sub", [scaled, low], outputs=[rounded], name=rounded.name),
        ],
    )
    return rounded


def _retype_attributes(node: ir.Node) -> None:
    """Change the attributes of a node that name FP16 to float32; the inserted cast after the node rounds its output."""
    for name in ("to", "dtype"):
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.type == ir.AttributeType.INT and attribute.as_int() == int(FLOAT16_TYPE):
            node.attributes[name] = ir.AttrInt64(name, int(FLOAT32_TYPE))
    value = node.attributes.get("value")
    if value is not None and value.type == ir.AttributeType.TENSOR and value.as_tensor().dtype == FLOAT16_TYPE:
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(value.as_tensor().numpy().astype(np.float32)))


def _value(name: str, dtype: ir.DataType, shape: ir.Shape | None) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=shape)
