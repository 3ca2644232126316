"""What an FP16 graph answers, found on a CPU: every FP16 tensor goes through float16 and back, in a float32 graph.

ONNX Runtime's CPU kernels keep float32 between FP16 operators, so a graph that overflows on a GPU looks sound there.
Here

    r = float32(float16(op(inputs)))      for every FP16 tensor that an operator computes

which is what an FP16 kernel with float32 accumulation does. Operators that only move or select values round nothing.
TensorRT fuses operators and rounds less often, so this is the stricter of the two. For TF32, the inputs of convolutions
and matrix products are rounded to 11 significant bits (Veltkamp's splitting: c = 8193 x, r = c - (c - x)).

Each rounded tensor also gives its largest and smallest element and a sum of squares, which is finite if and only if
every element is: FP16 squares to at most 4.3e9, and float32 holds 7e28 such terms. The three are reduced inside the
graph, so that no tensor leaves it: at the paper's size one of them takes 1 GiB.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
from tmi.runtime.engines.precision import TF32, graph_precisions

DATA_MOVEMENT_OPS = frozenset(
    "Reshape Transpose Slice Concat Squeeze Unsqueeze Gather GatherElements GatherND Expand Split Identity Flatten "
    "MaxPool Relu Max Min Where Tile Pad".split()
)
"""Operators whose output holds nothing but values of their inputs (or zero)."""
MATRIX_PRODUCT_OPS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
"""Operators that TF32 rounds the inputs of."""
PROBE_REDUCTIONS: Mapping[str, str] = {"top": "ReduceMax", "bottom": "ReduceMin", "squares": "ReduceSumSquare"}
"""What is asked of every FP16 tensor -> the operator that answers."""
VELTKAMP_FACTOR = 8193.0
"""2^13 + 1: leaves 11 of float32's 24 significant bits."""


@dataclass(frozen=True, kw_only=True)
class TensorExtreme:
    """What one FP16 tensor reached."""

    tensor: str
    """Its name."""
    node: str
    """Node that computes it."""
    operator: str
    """Its operator."""
    largest: float
    """Largest magnitude seen; infinite where a value was not finite."""

    @property
    def finite(self) -> bool:
        """Whether every element of every run was finite."""
        return bool(np.isfinite(self.largest))


@dataclass(frozen=True, kw_only=True)
class Emulation:
    """A float32 graph that answers like an FP16 one."""

    model: ir.Model
    """The graph; after its own outputs it has three scalars for each probe."""
    probes: Mapping[str, tuple[str, str]]
    """Rounded tensor -> node and operator that compute it."""


def emulate_fp16(model: ir.Model) -> Emulation:
    """Rewrite a strongly typed FP16 graph in place."""
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
                _probe(graph, str(value.name), _round_trip(graph, node, value))
                probes[str(value.name)] = (str(node.name), node.op_type)
        _widen_attributes(node)
    passes.TopologicalSortPass()(model)
    return Emulation(model=model, probes=probes)


def emulate_tf32(model: ir.Model) -> Emulation:
    """Rewrite a float32 graph in place; nothing overflows that does not in float32, so nothing is probed."""
    graph = model.graph
    factor = ir.Value(name="tf32_split", type=ir.TensorType(FLOAT32_TYPE), shape=ir.Shape(()))
    factor.const_value = ir.tensor(np.float32(VELTKAMP_FACTOR), name="tf32_split")
    graph.register_initializer(factor)
    rounded: dict[int, ir.Value] = {}
    for node in list(graph):
        for index, value in enumerate(node.inputs[:2] if node.op_type in MATRIX_PRODUCT_OPS else ()):
            if value is not None and value.dtype == FLOAT32_TYPE:
                if id(value) not in rounded:
                    rounded[id(value)] = _split(graph, node, value, factor)
                node.replace_input_with(index, rounded[id(value)])
    passes.TopologicalSortPass()(model)
    return Emulation(model=model, probes={})


@dataclass(frozen=True, kw_only=True)
class EmulationSession:
    """An emulation that is ready to run; the graph's own copy of the weights is gone."""

    session: onnxruntime.InferenceSession
    """ONNX Runtime's."""
    probes: Mapping[str, tuple[str, str]]
    """As in `Emulation`."""


class EmulationEngine(GraphEngine):
    """ONNX Runtime on the emulation of a bundle's mixed-precision graphs; answers slowly and is for judging only."""

    name = "fp16-emulation"

    def __init__(self) -> None:
        super().__init__()
        self._precisions: dict[str, str] = {}
        self._recorded: dict[str, dict[str, TensorExtreme]] | None = None

    @contextmanager
    def recording_extremes(self) -> Iterator[dict[str, dict[str, TensorExtreme]]]:
        """Collect what every FP16 tensor reaches while the block runs: graph -> tensor -> extreme."""
        self._recorded = {}
        try:
            yield self._recorded
        finally:
            self._recorded = None

    def _start(self, bundle: Bundle) -> None:
        self._precisions = graph_precisions(bundle.manifest)

    def _load(self, spec: GraphSpec, path: Path) -> EmulationSession:
        model = read_typed(path)
        tf32 = self._precisions[spec.name] == TF32
        return emulation_session(emulate_tf32(model) if tf32 else emulate_fp16(model), threads=self.threads)

    def _run(self, spec: GraphSpec, loaded: Any, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        outputs, extremes = run_emulation(loaded, [t.name for t in spec.outputs], inputs)
        if self._recorded is not None:
            mine = self._recorded.setdefault(spec.name, {})
            for name, extreme in extremes.items():
                if name not in mine or not extreme.largest <= mine[name].largest:
                    mine[name] = extreme
        return outputs


def emulation_session(emulation: Emulation, *, threads: int) -> EmulationSession:
    """ONNX Runtime's session of an emulation; float32 kernels alone."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A volume's tensors are large: free each as soon as it and its probes are done, and keep nothing for the next run.
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
    """Outputs by name, and what every FP16 tensor reached."""
    wanted = [*names, *(f"{name}::{kind}" for name in loaded.probes for kind in PROBE_REDUCTIONS)]
    with as_runtime_errors():
        answers = loaded.session.run(wanted, dict(inputs))
    figures = iter(answers[len(names) :])
    extremes = {}
    for (name, (node, operator)), top, bottom, squares in zip(
        loaded.probes.items(), figures, figures, figures, strict=True
    ):
        reached = max(abs(float(top)), abs(float(bottom))) if np.isfinite(squares) else float("inf")
        extremes[name] = TensorExtreme(tensor=name, node=node, operator=operator, largest=reached)
    return dict(zip(names, answers, strict=False)), extremes


def _round_trip(graph: ir.Graph, node: ir.Node, value: ir.Value) -> ir.Value:
    """Everything that reads `value` reads it rounded to FP16 instead."""
    users = list(value.uses())
    half = _value(f"{value.name}::half", FLOAT16_TYPE, value.shape)
    rounded = _value(f"{value.name}::rounded", FLOAT32_TYPE, value.shape)
    down = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(FLOAT16_TYPE))], outputs=[half], name=half.name)
    up = ir.Node("", "Cast", [half], [ir.AttrInt64("to", int(FLOAT32_TYPE))], outputs=[rounded], name=rounded.name)
    graph.insert_after(node, [down, up])
    for user, index in users:
        user.replace_input_with(index, rounded)
    return rounded


def _probe(graph: ir.Graph, name: str, rounded: ir.Value) -> None:
    producer = rounded.producer()
    assert producer is not None
    figures = {kind: _value(f"{name}::{kind}", FLOAT32_TYPE, ir.Shape(())) for kind in PROBE_REDUCTIONS}
    scalar = [ir.AttrInt64("keepdims", 0)]
    graph.insert_after(
        producer,
        [
            ir.Node("", PROBE_REDUCTIONS[kind], [rounded], scalar, outputs=[v], name=v.name)
            for kind, v in figures.items()
        ],
    )
    graph.outputs.extend(figures.values())


def _split(graph: ir.Graph, node: ir.Node, value: ir.Value, factor: ir.Value) -> ir.Value:
    """`value` with 11 significant bits."""
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


def _widen_attributes(node: ir.Node) -> None:
    """A node that makes its own FP16 values makes float32 ones; the round trip that follows it rounds them."""
    for name in ("to", "dtype"):
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.type == ir.AttributeType.INT and attribute.as_int() == int(FLOAT16_TYPE):
            node.attributes[name] = ir.AttrInt64(name, int(FLOAT32_TYPE))
    value = node.attributes.get("value")
    if value is not None and value.type == ir.AttributeType.TENSOR and value.as_tensor().dtype == FLOAT16_TYPE:
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(value.as_tensor().numpy().astype(np.float32)))


def _value(name: str, dtype: ir.DataType, shape: ir.Shape | None) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=shape)
