"""Float32 graphs become strongly typed FP16 graphs; what FP16 is not safe for stays in float32, and says why."""

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
    """Attention in small: products, a scale, a softmax, a layer norm."""
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


def convert(path: Path, **keep: str) -> onnx.ModelProto:
    half = to_fp16(path, keep=keep)
    save(half.model, path.with_suffix(".fp16.onnx"))
    return onnx.shape_inference.infer_shapes(onnx.load(path.with_suffix(".fp16.onnx")), strict_mode=True)


def types(model: onnx.ModelProto) -> dict[str, int]:
    graph = model.graph
    values = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output, *graph.value_info)}
    return values | {i.name: i.data_type for i in graph.initializer}


def test_products_are_fp16_and_sums_and_exponentials_float32_while_inputs_and_outputs_keep_their_types(block):
    model = convert(block)
    kind = types(model)
    by_operator = {n.op_type: kind[n.output[0]] for n in model.graph.node if n.op_type != "Cast"}
    assert by_operator == {"MatMul": HALF, "Relu": HALF, "Softmax": FLOAT, "LayerNormalization": FLOAT}
    assert (kind["x"], kind["y"]) == (FLOAT, FLOAT)
    half = to_fp16(block)
    assert half.kept == {
        "node_s": "Softmax: exponentials and their sum",
        "node_n": "LayerNormalization: squares and sums a whole row",
    }
    assert half.half == 3


def test_weights_keep_their_names_and_are_rounded_to_nearest_or_left_alone(block):
    before = {i.name: numpy_helper.to_array(i) for i in onnx.load(block).graph.initializer}
    after = {i.name: numpy_helper.to_array(i) for i in convert(block).graph.initializer}
    assert set(after) == set(before)
    for name in ("w1", "w2"):
        np.testing.assert_array_equal(after[name], before[name].astype(np.float16))
    for name in ("g", "h"):
        np.testing.assert_array_equal(after[name], before[name])


def test_between_neighbours_in_float32_nothing_passes_through_fp16(block):
    """Otherwise a value that FP16 cannot hold would be lost between two nodes that were kept for its sake."""
    model = convert(block)
    norm = next(n for n in model.graph.node if n.op_type == "LayerNormalization")
    assert norm.input[0] == "s"


def test_a_node_is_kept_by_name_and_the_reason_given_with_it(block):
    half = to_fp16(block, keep={"node_y": "asked for", "nowhere": "ignored"})
    assert half.kept["node_y"] == "asked for"
    assert "nowhere" not in half.kept


@pytest.mark.parametrize("operator", FLOAT32_OPS)
def test_every_operator_of_the_table_exists_in_onnx(operator):
    assert onnx.defs.has(operator)


def test_a_weight_beyond_fp16_keeps_its_node_in_float32(tmp_path):
    path = write_graph(
        tmp_path / "g.onnx",
        [node("Mul", ["x", "large"], ["a"]), node("Mul", ["a", "small"], ["y"])],
        inputs={"x": ["B", 3]},
        outputs={"y": ["B", 3]},
        weights={"large": np.float32([1, 2, 7e4]), "small": np.float32([1e-4])},
    )
    assert to_fp16(path).kept == {"node_a": "Mul: large holds 7e+04, beyond FP16's 65504"}


@pytest.mark.parametrize(("variance", "kept"), [(1e-5, True), (1e-3, False)])
def test_a_batch_norm_whose_variance_fp16_would_blunt_stays_in_float32(tmp_path, variance, kept):
    path = write_graph(
        tmp_path / "g.onnx",
        [node("BatchNormalization", ["x", "g", "b", "m", "v"], ["y"])],
        inputs={"x": ["B", 2, 4]},
        outputs={"y": ["B", 2, 4]},
        weights={"g": normal(2), "b": normal(2), "m": normal(2), "v": np.float32([1, variance])},
    )
    assert bool(to_fp16(path).kept) is kept


def test_a_graph_with_a_subgraph_is_refused(tmp_path):
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


def test_answers_as_onnx_runtimes_own_converter_where_that_one_is_sound(block, tmp_path):
    """Its converter clamps what FP16 cannot hold and rounds between kept neighbours; here neither happens."""
    theirs = convert_float_to_float16(onnx.load(block), keep_io_types=True, op_block_list=list(FLOAT32_OPS))
    onnx.save(theirs, tmp_path / "theirs.onnx")
    x = {"x": normal(5, 8)}
    answers = []
    for model in (to_fp16(block).model, read_typed(tmp_path / "theirs.onnx")):
        outputs, _ = run_emulation(emulation_session(emulate_fp16(model), threads=1), ["y"], x)
        answers.append(outputs["y"])
    exact = onnxruntime.InferenceSession(block).run(["y"], x)[0]
    np.testing.assert_allclose(answers[0], answers[1], rtol=0, atol=2e-3 * np.abs(exact).max())
    np.testing.assert_allclose(answers[0], exact, rtol=0, atol=4e-3 * np.abs(exact).max())
