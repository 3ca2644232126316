"""Runs of graphs in ONNX Runtime: largest magnitudes of activations, errors of single layers, outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from tmi.export.quantization.qdq import quantisable, quantised

ERRORS_ONLY = 3
LAYERS_AT_ONCE = 8
"""Number of layers whose errors one pass measures."""
Inputs = Mapping[str, NDArray[np.generic]]


def session(model: ModelProto, *, threads: int) -> onnxruntime.InferenceSession:
    """A session on the CPU that frees the memory of a run."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def largest_magnitudes(model: ModelProto, inputs: Iterable[Inputs], *, threads: int) -> dict[str, float]:
    """Largest magnitude of every activation that a quantisable layer reads, over all inputs.

    Args:
        model: the graph of `folded_graph`.
        inputs: inputs of the graph, one case each.
        threads: threads of ONNX Runtime.
    """
    names = list(dict.fromkeys(name for values in quantisable(model).values() for name in values))
    extremes = [(f"{name}.{kind}", kind, name) for name in names for kind in ("ReduceMin", "ReduceMax")]
    watched = _with_outputs(
        model, {out: helper.make_node(kind, [name], [out], keepdims=0) for out, kind, name in extremes}
    )
    run = session(watched, threads=threads)
    largest = np.zeros(len(names))
    for case in inputs:
        values = np.abs(np.array(run.run([out for out, _, _ in extremes], dict(case)), dtype=np.float64)).reshape(-1, 2)
        largest = np.maximum(largest, values.max(axis=1))
    return dict(zip(names, largest.tolist(), strict=True))


def layer_errors(
    model: ModelProto, magnitudes: Mapping[str, float], case: Inputs, *, threads: int, signed: bool = False
) -> dict[str, float]:
    """Error of every quantisable layer alone: its output in INT8 against float32, both of float32 inputs.

    Layers are compared a few at a time: the comparison of all would hold several times the tensors of a pass.

    Returns:
        Layer -> largest difference divided by the largest magnitude of its float32 output.
    """
    layers = list(quantisable(model))
    groups = [layers[start : start + LAYERS_AT_ONCE] for start in range(0, len(layers), LAYERS_AT_ONCE)]
    errors: dict[str, float] = {}
    for group in groups:
        errors |= _errors_of(group, model, magnitudes, case, threads=threads, signed=signed)
    return errors


def _errors_of(
    layers: Sequence[str],
    model: ModelProto,
    magnitudes: Mapping[str, float],
    case: Inputs,
    *,
    threads: int,
    signed: bool,
) -> dict[str, float]:
    both = quantised(model, magnitudes, layers, signed=signed)
    nodes: dict[str, list[NodeProto]] = {}
    for node in both.graph.node:
        if node.name in layers:
            nodes[node.name] = _shadow(node)
    shadowed = ModelProto()
    shadowed.CopyFrom(model)
    known = {n.name for n in model.graph.node}
    extra = {t.name for t in model.graph.initializer}
    shadowed.graph.initializer.extend(t for t in both.graph.initializer if t.name not in extra)
    del shadowed.graph.node[:]
    outputs = []
    for node in both.graph.node:
        if node.name not in known:  # QuantizeLinear and DequantizeLinear
            shadowed.graph.node.append(node)
            continue
        original = next(n for n in model.graph.node if n.name == node.name)
        shadowed.graph.node.append(original)
        if node.name in nodes:
            shadowed.graph.node.extend(nodes[node.name])
            outputs += [f"{node.name}.difference", f"{node.name}.size"]
    for name in outputs:
        shadowed.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, []))
    values = np.array(session(shadowed, threads=threads).run(outputs, dict(case)), dtype=np.float64).reshape(-1, 2)
    return {layer: float(d / s) if s > 0 else 0.0 for layer, (d, s) in zip(nodes, values, strict=True)}


def outputs_of(model: ModelProto, inputs: Sequence[Inputs], *, threads: int) -> list[NDArray[np.float32]]:
    """First output of a graph for each input."""
    run = session(model, threads=threads)
    name = model.graph.output[0].name
    return [run.run([name], dict(case))[0] for case in inputs]


def _shadow(node: NodeProto) -> list[NodeProto]:
    """Nodes that compute a quantised layer beside the float32 one, and compare both."""
    copy = NodeProto()
    copy.CopyFrom(node)
    name, output = node.name, node.output[0]
    copy.name, copy.output[0] = f"{name}.int8", f"{name}.int8_output"
    return [
        copy,
        helper.make_node("Sub", [copy.output[0], output], [f"{name}.sub"]),
        helper.make_node("Abs", [f"{name}.sub"], [f"{name}.abs"]),
        helper.make_node("ReduceMax", [f"{name}.abs"], [f"{name}.difference"], keepdims=0),
        helper.make_node("Abs", [output], [f"{name}.magnitudes"]),
        helper.make_node("ReduceMax", [f"{name}.magnitudes"], [f"{name}.size"], keepdims=0),
    ]


def _with_outputs(model: ModelProto, nodes: Mapping[str, NodeProto]) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    copy.graph.node.extend(nodes.values())
    for name in nodes:
        copy.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, []))
    return copy
