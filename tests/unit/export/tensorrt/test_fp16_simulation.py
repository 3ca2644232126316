"""The emulation computes like FP16 and finds overflows that ONNX Runtime's CPU kernels hide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import helper

from factories.onnx_graph import write_graph
from tmi.export.tensorrt.fp16_conversion import read_typed, save, to_fp16
from tmi.export.tensorrt.fp16_simulation import emulate_fp16, emulate_tf32, emulation_session, run_emulation

node = helper.make_node
ULP = 2.0**-10
"""Spacing of FP16 numbers relative to their power of two."""


def emulated(path: Path, x: np.ndarray) -> tuple[np.ndarray, dict]:
    loaded = emulation_session(emulate_fp16(to_fp16(path).model), threads=1)
    outputs, extremes = run_emulation(loaded, ["y"], {"x": x})
    return outputs["y"], extremes


@pytest.fixture
def products(tmp_path: Path) -> tuple[Path, list[np.ndarray]]:
    rng = np.random.default_rng(3)
    w = [rng.normal(size=(16, 16)).astype(np.float32) / 4 for _ in range(3)]
    path = write_graph(
        tmp_path / "g.onnx",
        [
            node("MatMul", ["x", "w0"], ["a"]),
            node("Relu", ["a"], ["b"]),
            node("MatMul", ["b", "w1"], ["c"]),
            node("Mul", ["c", "c"], ["d"]),
            node("MatMul", ["d", "w2"], ["y"]),
        ],
        inputs={"x": ["B", 16]},
        outputs={"y": ["B", 16]},
        weights={f"w{i}": w_i for i, w_i in enumerate(w)},
    )
    return path, w


def test_emulation_agrees_with_torch_half(products):
    """The emulation agrees with torch's float16 on the CPU within a few units in the last place."""
    path, w = products
    x = np.random.default_rng(4).normal(size=(64, 16)).astype(np.float32)
    t = [torch.from_numpy(a).half() for a in (x, *w)]
    c = (t[0] @ t[1]).relu() @ t[2]
    expected = ((c * c) @ t[3]).float().numpy()
    actual, _ = emulated(path, x)
    # Products are summed in another order, so single roundings may differ by a few units in the last place.
    assert np.abs(actual - expected).max() <= 4 * ULP * np.abs(expected).max()
    assert (actual == expected).mean() > 0.5
    exact = onnxruntime.InferenceSession(path).run(["y"], {"x": x})[0]
    assert np.abs(actual - exact).max() > 2 * np.abs(actual - expected).max(), "it rounds like FP16, unlike float32"


def test_elementwise_operators_round_as_ieee_754(tmp_path):
    """Elementwise operators round exactly as IEEE 754 half precision."""
    path = write_graph(
        tmp_path / "g.onnx",
        [node("Add", ["x", "c"], ["a"]), node("Mul", ["a", "c"], ["y"])],
        inputs={"x": ["B"]},
        outputs={"y": ["B"]},
        weights={"c": np.float32([1 / 3])},
    )
    x = np.random.default_rng(5).uniform(-8, 8, 4096).astype(np.float32)
    c = np.float16(1 / 3)
    np.testing.assert_array_equal(emulated(path, x)[0], ((x.astype(np.float16) + c) * c).astype(np.float32))


def test_overflow_hidden_by_onnx_runtime_is_found(tmp_path):
    """An overflow between two operators that ONNX Runtime's CPU kernels hide is found with its node."""
    path = write_graph(
        tmp_path / "g.onnx",
        [
            node("Mul", ["x", "up"], ["a"], name="scores"),
            node("Mul", ["a", "down"], ["y"], name="back"),
        ],
        inputs={"x": ["B", 2]},
        outputs={"y": ["B", 2]},
        weights={"up": np.float32([400.0]), "down": np.float32([1 / 400])},
    )
    x = np.float32([[500.0, 1.0]])
    save(to_fp16(path).model, tmp_path / "half.onnx")
    options = onnxruntime.SessionOptions()
    session = onnxruntime.InferenceSession(tmp_path / "half.onnx", options, disabled_optimizers=["NchwcTransformer"])
    unrounded = session.run(["y"], {"x": x})[0]
    rounded, extremes = emulated(path, x)
    assert np.isinf(rounded[0, 0])
    overflows = [e for e in extremes.values() if not e.finite]
    assert (overflows[0].node, overflows[0].operator, overflows[0].tensor) == ("scores", "Mul", "a")
    assert rounded[0, 1] == pytest.approx(1, rel=1e-3)
    assert unrounded[0, 0] == pytest.approx(500, rel=1e-2), "ONNX Runtime's CPU kernels do not round between operators"


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_ALL"])
def test_inserted_casts_survive_graph_optimisation(products, level):
    """ONNX Runtime does not remove the inserted casts at any optimisation level."""
    path, _ = products
    x = np.random.default_rng(6).normal(size=(8, 16)).astype(np.float32)
    emulation = emulate_fp16(to_fp16(path).model)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = onnxruntime.InferenceSession(ir.to_proto(emulation.model).SerializeToString(), options)
    np.testing.assert_array_equal(session.run(["y"], {"x": x})[0], emulated(path, x)[0])


def test_tf32_rounds_product_inputs_to_11_bits(tmp_path):
    """The TF32 emulation rounds inputs of products to 11 bits, and no other tensor."""
    path = write_graph(
        tmp_path / "g.onnx",
        [node("MatMul", ["x", "w"], ["a"]), node("Add", ["a", "c"], ["y"])],
        inputs={"x": [1, 1]},
        outputs={"y": [1, 1]},
        weights={"w": np.float32([[1.0]]), "c": np.float32([2.0**-20])},
    )
    loaded = emulation_session(emulate_tf32(read_typed(path)), threads=1)
    for value in np.float32([1 + 2.0**-10, 1 + 2.0**-12, 3.14159265, 1e30, -7.3e-20]):
        outputs, _ = run_emulation(loaded, ["y"], {"x": np.float32([[value]])})
        mantissa, exponent = np.frexp(np.float64(value))
        expected = np.float32(np.ldexp(np.rint(mantissa * 2048), exponent - 11)) + np.float32(2.0**-20)
        assert outputs["y"][0, 0] == expected


def test_data_movement_operators_are_not_rounded(products):
    """Outputs of data movement operators are not rounded again, and the emulation is valid ONNX."""
    path, _ = products
    emulation = emulate_fp16(to_fp16(path).model)
    assert "b" not in emulation.probes
    assert "a" in emulation.probes
    onnx.checker.check_model(ir.to_proto(emulation.model))


def test_extreme_is_largest_magnitude_or_infinity(tmp_path):
    """The extreme is the largest magnitude of either sign, and infinity for NaN and overflow."""
    path = write_graph(
        tmp_path / "g.onnx",
        [node("Add", ["x", "c"], ["y"])],
        inputs={"x": ["B"]},
        outputs={"y": ["B"]},
        weights={"c": np.float32([0.0])},
    )
    for x, largest in (([-8.0, 2.0], 8.0), ([1.0, 4.0], 4.0), ([1.0, np.nan], np.inf), ([-1e6, 1.0], np.inf)):
        _, extremes = emulated(path, np.float32(x))
        assert [e.largest for e in extremes.values() if e.operator == "Add"] == [largest]
