"""The search finds what overflows or is sensitive, keeps that in float32 and nothing else, and says why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tmi.export.tensorrt.mixed_precision_search import ProbeInput, search_precision

WIDTH = 32


def chain(path: Path, steps: list[tuple[str, np.ndarray]]) -> list[ProbeInput]:
    """X [B, 32] through MatMul, Mul and Add with constants; node names are `<number>-<operator>`."""
    nodes, constants, value = [], [], "x"
    for number, (operator, constant) in enumerate(steps):
        constants.append(numpy_helper.from_array(constant.astype(np.float32), f"c{number}"))
        nodes.append(helper.make_node(operator, [value, f"c{number}"], [f"v{number}"], name=f"{number}-{operator}"))
        value = f"v{number}"
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", WIDTH]) for n in ("x", value)]
    graph = helper.make_graph(nodes, "chain", info[:1], info[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    x = np.random.default_rng(1).uniform(0.5, 1, (3, WIDTH)).astype(np.float32)
    answer = x.astype(np.float64)
    for operator, constant in steps:
        exact = constant.astype(np.float32).astype(np.float64)
        answer = {"MatMul": np.matmul, "Mul": np.multiply, "Add": np.add}[operator](answer, exact)
    return [ProbeInput(inputs={"x": x}, expected=answer.astype(np.float32))]


def mixing(seed: int, gain: float = 1.0) -> np.ndarray:
    return gain * np.random.default_rng(seed).uniform(0.5, 1, (WIDTH, WIDTH)) / WIDTH


def test_one_node_that_overflows_is_found_and_only_it_and_its_reader_stay_in_float32(tmp_path):
    honest = [("MatMul", mixing(s)) for s in range(4)]
    steps = [*honest[:2], ("MatMul", mixing(9, gain=1e6)), ("Mul", np.array(1e-6)), *honest[2:]]
    choice = search_precision(tmp_path / "g.onnx", chain(tmp_path / "g.onnx", steps), 1e-2)
    assert choice.precision == "float16"
    assert choice.keep == {
        "2-MatMul": "MatMul overflows FP16",
        "3-Mul": "Mul reads v2, which FP16 cannot hold",
    }
    assert choice.error < 1e-2
    assert choice.steps[0].startswith("FP16 wherever it is safe: relative error inf, ")


def test_a_graph_within_the_budget_keeps_nothing_in_float32(tmp_path):
    choice = search_precision(
        tmp_path / "g.onnx", chain(tmp_path / "g.onnx", [("MatMul", mixing(s)) for s in range(4)]), 1e-2
    )
    assert (choice.precision, choice.keep) == ("float16", {})


def test_the_node_that_loses_the_digits_is_found_by_its_sensitivity(tmp_path):
    """1000 is added and taken away again: what FP16 rounds there is lost, although nothing overflows."""
    honest = [("MatMul", mixing(s, gain=1.3)) for s in range(12)]
    steps = [*honest[:6], ("Add", np.array(1000.0)), ("Add", np.array(-1000.0)), *honest[6:]]
    choice = search_precision(tmp_path / "g.onnx", chain(tmp_path / "g.onnx", steps), 4e-3)
    assert choice.precision == "float16"
    assert set(choice.keep) == {"6-Add", "7-Add"}
    assert all("among the most sensitive" in why for why in choice.keep.values())
    assert choice.error <= 4e-3


@pytest.mark.parametrize(("budget", "precision"), [(1e-3, "tf32"), (1e-6, "float32")])
def test_where_fp16_would_keep_little_the_ladder_ends_at_tf32_by_name_or_at_float32(tmp_path, budget, precision):
    """Every product overflows FP16; TF32 has float32's range and FP16's digits."""
    steps = [("MatMul", mixing(s, gain=1e6 if s == 0 else 1.0)) for s in range(4)]
    choice = search_precision(tmp_path / "g.onnx", chain(tmp_path / "g.onnx", steps), budget)
    assert choice.precision == precision
    assert choice.keep == {}
    assert choice.error <= max(budget, 1e-6)
    assert any("had to leave FP16" in step for step in choice.steps)
