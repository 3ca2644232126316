"""The mixed-precision search excludes exactly the nodes that overflow or are sensitive, with a reason."""

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
    output = x.astype(np.float64)
    for operator, constant in steps:
        exact = constant.astype(np.float32).astype(np.float64)
        output = {"MatMul": np.matmul, "Mul": np.multiply, "Add": np.add}[operator](output, exact)
    return [ProbeInput(inputs={"x": x}, expected=output.astype(np.float32))]


def mixing(seed: int, gain: float = 1.0) -> np.ndarray:
    return gain * np.random.default_rng(seed).uniform(0.5, 1, (WIDTH, WIDTH)) / WIDTH


def test_search_excludes_overflowing_node_and_consumer(tmp_path):
    """Only the node that overflows and the consumer of its output stay in float32."""
    honest = [("MatMul", mixing(s)) for s in range(4)]
    steps = [*honest[:2], ("MatMul", mixing(9, gain=1e6)), ("Mul", np.array(1e-6)), *honest[2:]]
    plan = search_precision(tmp_path / "g.onnx", chain(tmp_path / "g.onnx", steps), 1e-2)
    assert plan.precision == "float16"
    assert plan.float32_nodes == {
        "2-MatMul": "MatMul overflows FP16",
        "3-Mul": "Mul reads v2, which FP16 cannot hold",
    }
    assert plan.error < 1e-2
    assert plan.steps[0].startswith("FP16 wherever it is safe: relative error inf, ")


def test_search_excludes_nothing_within_budget(tmp_path):
    """A graph whose FP16 error is within the budget has no float32 node."""
    plan = search_precision(
        tmp_path / "g.onnx", chain(tmp_path / "g.onnx", [("MatMul", mixing(s)) for s in range(4)]), 1e-2
    )
    assert (plan.precision, plan.float32_nodes) == ("float16", {})


def test_search_finds_cancelling_nodes_by_sensitivity(tmp_path):
    """Adding and subtracting 1000 loses digits in FP16 without an overflow; the search finds both nodes."""
    honest = [("MatMul", mixing(s, gain=1.3)) for s in range(12)]
    steps = [*honest[:6], ("Add", np.array(1000.0)), ("Add", np.array(-1000.0)), *honest[6:]]
    plan = search_precision(tmp_path / "g.onnx", chain(tmp_path / "g.onnx", steps), 4e-3)
    assert plan.precision == "float16"
    assert set(plan.float32_nodes) == {"6-Add", "7-Add"}
    assert all("among the most sensitive" in why for why in plan.float32_nodes.values())
    assert plan.error <= 4e-3


@pytest.mark.parametrize(("budget", "precision"), [(1e-3, "tf32"), (1e-6, "float32")])
def test_search_falls_back_to_tf32_or_float32(tmp_path, budget, precision):
    """If every product overflows FP16, the search ends with TF32, or with float32 for a tight budget."""
    steps = [("MatMul", mixing(s, gain=1e6 if s == 0 else 1.0)) for s in range(4)]
    plan = search_precision(tmp_path / "g.onnx", chain(tmp_path / "g.onnx", steps), budget)
    assert plan.precision == precision
    assert plan.float32_nodes == {}
    assert plan.error <= max(budget, 1e-6)
    assert any("are excluded from FP16" in step for step in plan.steps)
