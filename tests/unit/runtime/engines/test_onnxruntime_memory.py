"""ONNX Runtime releases the memory of an encoder after each run, whatever the batch size."""

from __future__ import annotations

import numpy as np
import psutil
import pytest
from onnx import TensorProto, helper, save

from tmi.runtime.bundle.manifest import GraphSpec, TensorSpec
from tmi.runtime.engines.onnxruntime import OnnxEngine

WIDE = 2**22
"""Elements of one intermediate tensor of one case: 16 MiB."""


@pytest.fixture
def wide_graph(tmp_path):
    """Graph x [B, 1] -> intermediate tensors of 16 MiB a case -> feature [B, 1]."""
    nodes = [
        helper.make_node("Expand", ["x", "shape"], ["wide"]),
        helper.make_node("Exp", ["wide"], ["a"]),
        helper.make_node("Sin", ["a"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("ReduceMean", ["c", "axes"], ["feature"], keepdims=1),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "wide",
        [value("x", TensorProto.FLOAT, ["batch", 1])],
        [value("feature", TensorProto.FLOAT, ["batch", 1])],
        [
            helper.make_tensor("shape", TensorProto.INT64, [2], [1, WIDE]),
            helper.make_tensor("axes", TensorProto.INT64, [1], [1]),
        ],
    )
    path = tmp_path / "wide.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    x, feature = (TensorSpec(name=name, dtype="float32", shape=("batch", 1)) for name in ("x", "feature"))
    return GraphSpec(name="ct-0", role="ct", inputs=(x,), outputs=(feature,), artefacts={}), path


def test_encoder_memory_is_released(wide_graph):
    """Memory of a large batch is released after the run."""
    spec, path = wide_graph
    engine = OnnxEngine()
    engine.threads = 1
    session = engine._load(spec, path, path.read_bytes)
    process = psutil.Process()
    before = process.memory_info().rss
    for cases in (1, 16, 1, 16):
        engine._run(spec, session, {"x": np.ones((cases, 1), dtype=np.float32)})
    retained_mib = (process.memory_info().rss - before) / 2**20
    assert retained_mib < 128, "a tensor of 16 cases takes 256 MiB: one of them was not released"
