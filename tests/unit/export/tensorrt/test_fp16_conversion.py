"""Conversion of float32 graphs to strongly typed FP16 graphs: excluded nodes, weights, casts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from factories.onnx_graph import FLOAT, HALF, write_graph
from tmi.export.tensorrt.fp16_conversion import FLOAT32_OPS, read_typed, save, to_fp16
from tmi.export.tensorrt.fp16_simulation import emulate_fp16, emulation_session, run_emulation

node = helper.make_node
RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.fixture
def block(tmp_path: Path) -> Path:
    """A small attention-like graph: products, a ReLU, a softmax, a layer norm."""
    return write_graph(
        tmp_path / "block.onnx",
        [
            node("MatMul", ["x", "w1"], ["a"]),
            node("Relu", ["a"], ["b"]),
            node("Softmax", ["b"], ["s"], axis=-1),
            node("LayerNormalization", ["s", "g", "h"], ["n"], axis=-1),
            node("MatMul", ["n", "w2"], ["y"]),
        ],
        inputs={"x": ["B", 8]},
        outputs={"y": ["B", 4]},
        weights={"w1": normal(8, 6), "w2": normal(6, 4), "g": normal(6), "h": normal(6)},
    )


def convert(path: Path) -> onnx.ModelProto:
    save(to_fp16(path).model, path.with_suffix(".fp16.onnx"))
    return onnx.shape_inference.infer_shapes(onnx.load(path.with_suffix(".fp16.onnx")), strict_mode=True)


def types(model: onnx.ModelProto) -> dict[str, int]:
    graph = model.graph
    values = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output, *graph.value_info)}
    return values | {i.name: i.data_type for i in graph.initializer}


def test_products_become_fp16_and_reductions_stay_float32(block):
    """Products become FP16, softmax and layer norm stay float32, graph inputs and outputs keep their types."""
    model = convert(block)
    type_of = types(model)
    by_operator = {n.op_type: type_of[n.output[0]] for n in model.graph.node if n.op_type != "Cast"}
    assert by_operator == {"MatMul": HALF, "Relu": HALF, "Softmax": FLOAT, "LayerNormalization": FLOAT}
    assert (type_of["x"], type_of["y"]) == (FLOAT, FLOAT)
    converted = to_fp16(block)
    assert converted.float32_nodes == {
        "node_s": "Softmax: exponentials and their sum",
        "node_n": "LayerNormalization: squares and sums a whole row",
    }
    assert converted.fp16_count == 3


def test_weights_are_rounded_to_nearest_under_their_names(block):
    """Weights of FP16 nodes are rounded to nearest, others are unchanged, and all keep their names."""
    before = {i.name: numpy_helper.to_array(i) for i in onnx.load(block).graph.initializer}
    after = {i.name: numpy_helper.to_array(i) for i in convert(block).graph.initializer}
    assert set(after) == set(before)
    for name in ("w1", "w2"):
        np.testing.assert_array_equal(after[name], before[name].astype(np.float16))
    for name in ("g", "h"):
        np.testing.assert_array_equal(after[name], before[name])


def test_value_between_float32_nodes_is_not_cast(block):
    """A value between two float32 nodes is not cast, so a value beyond FP16's range is not lost."""
    model = convert(block)
    norm = next(n for n in model.graph.node if n.op_type == "LayerNormalization")
    assert norm.input[0] == "s"


def test_named_node_stays_float32_with_reason(block):
    """A node named by the caller stays float32 with the given reason; unknown names are ignored."""
    converted = to_fp16(block, float32_nodes={"node_y": "requested", "nowhere": "ignored"})
    assert converted.float32_nodes["node_y"] == "requested"
    assert "nowhere" not in converted.float32_nodes


@pytest.mark.parametrize("operator", FLOAT32_OPS)
def test_float32_operator_exists_in_onnx(operator):
    """Every operator of `FLOAT32_OPS` exists in ONNX."""
    assert onnx.defs.has(operator)


def test_weight_beyond_fp16_range_keeps_node_float32(tmp_path):
    """A node with a weight above 65504 stays float32."""
    path = write_graph(
        tmp_path / "g.onnx",
        [node("Mul", ["x", "large"], ["a"]), node("Mul", ["a", "small"], ["y"])],
        inputs={"x": ["B", 3]},
        outputs={"y": ["B", 3]},
        weights={"large": np.float32([1, 2, 7e4]), "small": np.float32([1e-4])},
    )
    assert to_fp16(path).float32_nodes == {"node_a": "Mul: large holds 7e+04, beyond FP16's 65504"}


@pytest.mark.parametrize(("variance", "excluded"), [(1e-5, True), (1e-3, False)])
def test_batch_norm_with_subnormal_variance_stays_float32(tmp_path, variance, excluded):
    """A batch norm stays float32 if a running variance is below FP16's smallest normal number."""
    path = write_graph(
        tmp_path / "g.onnx",
        [node("BatchNormalization", ["x", "g", "b", "m", "v"], ["y"])],
        inputs={"x": ["B", 2, 4]},
        outputs={"y": ["B", 2, 4]},
        weights={"g": normal(2), "b": normal(2), "m": normal(2), "v": np.float32([1, variance])},
    )
    assert bool(to_fp16(path).float32_nodes) is excluded


def test_graph_with_subgraph_is_rejected(tmp_path):
    """A graph with a subgraph is not converted."""
    branch = helper.make_graph(
        [node("Identity", ["x"], ["t"])], "t", [], [helper.make_tensor_value_info("t", FLOAT, [1])]
    )
    path = tmp_path / "g.onnx"
    onnx.save(
        helper.make_model(
            helper.make_graph(
                [node("If", ["c"], ["y"], name="branch", then_branch=branch, else_branch=branch)],
                "g",
                [
                    helper.make_tensor_value_info("c", TensorProto.BOOL, []),
                    helper.make_tensor_value_info("x", FLOAT, [1]),
                ],
                [helper.make_tensor_value_info("y", FLOAT, [1])],
            ),
            opset_imports=[helper.make_opsetid("", 20)],
            ir_version=9,
        ),
        path,
    )
    with pytest.raises(RuntimeError, match=r"node branch \(If\) has a subgraph"):
        to_fp16(path)


def test_conversion_agrees_with_onnx_runtime_converter(block, tmp_path):
    """Where ONNX Runtime's converter neither clamps nor rounds between float32 nodes, both agree."""
    expected = convert_float_to_float16(onnx.load(block), keep_io_types=True, op_block_list=list(FLOAT32_OPS))
    onnx.save(expected, tmp_path / "expected.onnx")
    x = {"x": normal(5, 8)}
    results = []
    for model in (to_fp16(block).model, read_typed(tmp_path / "expected.onnx")):
        outputs, _ = run_emulation(emulation_session(emulate_fp16(model), threads=1), ["y"], x)
        results.append(outputs["y"])
    exact = onnxruntime.InferenceSession(block).run(["y"], x)[0]
    np.testing.assert_allclose(results[0], results[1], rtol=0, atol=2e-3 * np.abs(exact).max())
    np.testing.assert_allclose(results[0], exact, rtol=0, atol=4e-3 * np.abs(exact).max())
