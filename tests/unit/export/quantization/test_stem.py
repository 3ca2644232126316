"""Convolutions of a graph's input, rewritten as ones of stride 1 that read blocks of voxels as channels."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tmi.export.quantization.folding import folded_graph
from tmi.export.quantization.measuring import largest_magnitudes, outputs_of
from tmi.export.quantization.qdq import quantisable, quantised, unsigned
from tmi.export.quantization.stem import read_blocks


def strided(*, channels=1, size=(4, 8, 8), kernel=(7, 7, 7), **attributes):
    """A graph of one convolution of its input."""
    weight = np.random.default_rng(1).normal(size=(3, channels, *kernel)).astype(np.float32)
    node = helper.make_node("Conv", ["ct", "w"], ["y"], "stem", kernel_shape=kernel, **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("ct", TensorProto.FLOAT, ["B", channels, *size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * (2 + len(size)))],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(
    ("changes", "channels"),
    [
        ({"strides": [1, 2, 2], "pads": [3] * 6}, 4),
        ({"strides": [2, 2, 2], "pads": [3] * 6}, 8),
        ({"strides": [1, 4, 2], "pads": [0, 1, 2, 3, 4, 5], "kernel": (1, 5, 3)}, 8),
        ({"strides": [2, 2, 1], "pads": [0] * 6, "kernel": (2, 3, 1)}, 4),
        ({"strides": [2, 2], "pads": [3] * 4, "kernel": (7, 7), "size": (8, 16)}, 4),
        ({"strides": [1, 2, 2], "pads": [1] * 6, "kernel": (3, 3, 3), "channels": 3}, 12),
    ],
)
def test_reading_in_blocks_keeps_the_values(changes, channels):
    """The rewritten convolution has stride 1, more channels and the same outputs, also with uneven padding."""
    model = strided(**changes)
    x = np.random.default_rng(2).normal(size=(2, *(d.dim_value for d in shape_of(model)[1:]))).astype(np.float32)
    (before,) = outputs_of(model, [{"ct": x}], threads=1)
    read_blocks(model.graph)
    onnx.checker.check_model(model)
    (after,) = outputs_of(model, [{"ct": x}], threads=1)
    assert after.shape == before.shape
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())
    weight = next(t for t in model.graph.initializer if t.name == "w.blocks")
    assert weight.dims[1] == channels


@pytest.mark.parametrize(
    "changes",
    [
        {"strides": [1, 1, 1], "pads": [3] * 6},
        {"strides": [1, 2, 2], "pads": [3] * 6, "size": (4, 9, 8)},
        {"strides": [1, 2, 2], "pads": [3] * 6, "channels": 4},
        {"strides": [1, 2, 2], "pads": [6] * 6, "dilations": [2, 2, 2]},
        {"strides": [1, 2, 2], "auto_pad": "SAME_UPPER"},
    ],
)
def test_other_convolutions_stay(changes):
    """A convolution without stride, of enough channels, of uneven size, dilated or padded by rule is left as it is."""
    model = strided(**changes)
    before = model.SerializeToString()
    read_blocks(model.graph)
    assert model.SerializeToString() == before


def test_volumes_that_are_never_negative_have_all_steps(tmp_path):
    """The input is unsigned only if that is stated; then rounding is twice as fine."""
    onnx.save(strided(strides=[1, 2, 2], pads=[3] * 6), tmp_path / "graph.onnx")
    x = {"ct": np.random.default_rng(3).random((1, 1, 4, 8, 8)).astype(np.float32)}
    errors = []
    for nonnegative in (False, True):
        model = folded_graph(tmp_path / "graph.onnx", nonnegative=nonnegative)
        assert ("ct.blocks" in unsigned(model)) == nonnegative
        rounded = quantised(model, largest_magnitudes(model, [x], threads=1), list(quantisable(model)))
        scale = next(numpy_helper.to_array(t) for t in rounded.graph.initializer if t.name == "ct.blocks.scale")
        errors.append(float(scale))
    assert errors[0] == pytest.approx(errors[1] * 255 / 127)


def shape_of(model):
    return model.graph.input[0].type.tensor_type.shape.dim
