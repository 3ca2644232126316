"""Small ONNX graphs built from a list of nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
Shape = Sequence[int | str]


def write_graph(
    path: Path,
    nodes: Sequence[NodeProto],
    *,
    inputs: Mapping[str, Shape],
    outputs: Mapping[str, Shape],
    weights: Mapping[str, np.ndarray],
    dtype: int = FLOAT,
) -> Path:
    """Write the graph; a node without a name is named for its first output."""
    for node in nodes:
        node.name = node.name or f"node_{node.output[0]}"
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(n, dtype, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, dtype, s) for n, s in outputs.items()],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path
