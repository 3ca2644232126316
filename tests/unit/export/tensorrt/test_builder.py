"""Tests of the TensorRT plan builder: real builds with TensorRT-RTX, which needs no GPU, and a fake of `tensorrt`."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from factories.fake_trt import fake_trt
from factories.onnx_graph import FLOAT, HALF, write_graph
from factories.small_bundle import small_manifest
from tmi.export.tensorrt import engines as plans
from tmi.export.tensorrt.builder import TARGETS, BuildOptions, audit_network, build_plan, optimization_profiles
from tmi.runtime.bundle.manifest import GraphSpec, TensorSpec
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.bundle.tensorrt_records import GraphPrecision, PlanRecord, PrecisionRecord, TensorRtRecord
from tmi.runtime.engines import nvidia_driver
from tmi.runtime.engines.nvidia_driver import Gpu
from tmi.toolkit.errors import UnavailableError, UsageError

rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no package for this platform")
node = helper.make_node
GRAPHS = tuple(g.name for g in small_manifest().graphs)


def spec(**shapes: tuple[int | str, ...]) -> GraphSpec:
    inputs = tuple(TensorSpec(name=n, dtype="float32", shape=s) for n, s in shapes.items())
    return GraphSpec(name="g", role="ct", inputs=inputs, outputs=inputs[:1], artefacts={})


def products(path: Path, dtype: int) -> Path:
    kind = np.float16 if dtype == HALF else np.float32
    return write_graph(
        path,
        [node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["y"])],
        inputs={"x": ["B", 8]},
        outputs={"y": ["B", 8]},
        weights={"w": np.eye(8, dtype=kind)},
        dtype=dtype,
    )


@pytest.mark.parametrize("target", TARGETS)
def test_plan_is_built_for_every_target(tmp_path, target):
    """TensorRT-RTX builds a plan for every target without a GPU, and its record describes it."""
    path = products(tmp_path / "g.onnx", HALF)
    plan = build_plan(rtx, path, spec(x=("B", 8)), BuildOptions(target=target), float32_nodes={})
    assert len(plan.data) > 1000
    assert plan.record.target == target
    assert plan.record.builder == f"tensorrt_rtx {rtx.__version__}"
    assert plan.record.plan.bytes == len(plan.data)
    assert (plan.record.layers_in_half, plan.record.layers_in_float) == (2, 0)
    assert plan.record.profiles == ({"x": ((1, 8), (1, 8), (1, 8))}, {"x": ((1, 8), (4, 8), (4, 8))})


DEAD_BUILDER = """
import gc
import sys
from pathlib import Path

import tensorrt_rtx as rtx

from tmi.export.tensorrt import builder
from tmi.runtime.bundle.manifest import GraphSpec, TensorSpec


class Allocating(type(builder.collecting_logger(rtx))):
    def log(self, severity, message):
        super().log(severity, message)
        if gc.isenabled():
            gc.collect()


x = TensorSpec(name="x", dtype="float32", shape=("B", 8))
spec = GraphSpec(name="g", role="ct", inputs=(x,), outputs=(x,), artefacts={})
gc.set_threshold(10**9)
cycle = [rtx.Builder(builder.collecting_logger(rtx))]
cycle.append(cycle)
del cycle
builder.collecting_logger = lambda trt: Allocating()
builder.build_plan(rtx, Path(sys.argv[1]), spec, builder.BuildOptions(target="sm80"), float32_nodes={})
print("built", gc.isenabled())
"""
"""A builder that only a cycle holds, and a build whose logger starts a collection if that is permitted."""


def test_builder_of_a_failed_build_does_not_block_the_next(tmp_path):
    """A dead builder is not freed while TensorRT holds its lock: the next build ends."""
    path = products(tmp_path / "g.onnx", HALF)
    ended = subprocess.run(
        [sys.executable, "-c", DEAD_BUILDER, path], timeout=60, check=True, capture_output=True, text=True
    )
    assert ended.stdout == "built True\n"


def unsupported(folder: Path) -> Path:
    nodes = [node("StringNormalizer", ["x"], ["y"])]
    return write_graph(
        folder / "g.onnx", nodes, inputs={"x": ["B"]}, outputs={"y": ["B"]}, weights={}, dtype=8
    )  # string


def mixed(folder: Path) -> Path:
    nodes = [node("Add", ["x", "c"], ["y"])]
    return write_graph(
        folder / "g.onnx", nodes, inputs={"x": ["B", 8]}, outputs={"y": ["B", 8]}, weights={"c": np.ones(8, np.float16)}
    )


def float_conv(folder: Path) -> Path:
    nodes = [node("Conv", ["x", "w"], ["y"], pads=[1] * 6)]
    return write_graph(
        folder / "g.onnx",
        nodes,
        inputs={"x": ["B", 1, 8, 8, 8]},
        outputs={"y": ["B", 4, 8, 8, 8]},
        weights={"w": np.ones((4, 1, 3, 3, 3), np.float32)},
    )


@pytest.mark.parametrize(
    ("write", "shape", "target", "text"),
    [
        (unsupported, ("B",), "sm80", "cannot parse graph g"),
        (mixed, ("B", 8), "sm80", "cannot .* graph g"),
        (float_conv, ("B", 1, 8, 8, 8), "sm75", "cannot build a plan from graph g"),
        (lambda folder: products(folder / "g.onnx", FLOAT), (4, 8), "sm80", "axis 0 of input x is dynamic and no prof"),
        (lambda folder: products(folder / "g.onnx", FLOAT), ("B", 8), "sm90", "has no build target sm90"),
    ],
    ids=["unsupported operator", "mixed types", "float32 Conv3d on SM75", "dynamic without profile", "unknown target"],
)
def test_rejected_graph_is_error_with_reason_and_fix(tmp_path, write, shape, target, text):
    """A graph or target that TensorRT rejects is exit code 5 with TensorRT's message and a fix."""
    with pytest.raises(UnavailableError, match=text) as caught:
        build_plan(rtx, write(tmp_path), spec(x=shape), BuildOptions(target=target))
    assert caught.value.exit_code == 5
    assert "tensorrt_rtx" in caught.value.what
    assert "docs/tensorrt.md" in caught.value.fix
    assert not caught.value.what.endswith(": it gives no reason")


@pytest.mark.parametrize("options", [{"weights": "refit"}, {"weights": "strip"}, {"hardware": "ampere-plus"}])
def test_unsupported_rtx_option_is_rejected(tmp_path, options):
    """Options that TensorRT-RTX does not support without a GPU are errors, not ignored."""
    path = products(tmp_path / "g.onnx", HALF)
    with pytest.raises(UnavailableError, match="tensorrt_rtx"):
        build_plan(rtx, path, spec(x=("B", 8)), BuildOptions(target="sm80", **options))


def test_undeclared_float32_layer_is_found(tmp_path):
    """The audit lists float32 layers whose node was not excluded from FP16."""
    logger = rtx.Logger(rtx.Logger.ERROR)
    network = rtx.Builder(logger).create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert rtx.OnnxParser(network, logger).parse_from_file(str(products(tmp_path / "g.onnx", FLOAT)))
    audit = audit_network(network, {})
    assert audit.unexplained == ("node_a (MATRIX_MULTIPLY)", "node_y (ACTIVATION)")
    audit = audit_network(network, {"node_a": "why", "node_y": "why"})
    assert audit.unexplained == ()
    assert audit.float_nodes == {"node_a": ("MATRIX_MULTIPLY",), "node_y": ("ACTIVATION",)}
    assert (audit.count("FLOAT"), audit.count("HALF")) == (2, 0)


def test_text_profiles_span_one_token_to_maximum():
    """The profiles of a text graph span one token to the maximum length, for one case and for batches."""
    options = BuildOptions(max_batch=8, max_length=512)
    one, many = optimization_profiles(spec(input_ids=("B", "T")), options)
    assert one["input_ids"] == ((1, 1), (1, 512), (1, 512))
    assert many["input_ids"] == ((1, 1), (8, 512), (8, 512))
    assert len(optimization_profiles(spec(input_ids=("B", "T")), replace(options, max_batch=1))) == 1


def fake_build(trt: Any, tmp_path: Path, **options: Any) -> PlanRecord:
    path = products(tmp_path / "g.onnx", HALF)
    return build_plan(trt, path, spec(x=("B", 4)), BuildOptions(**options), float32_nodes={}).record


@pytest.mark.parametrize(
    ("version", "flag", "flags", "feature"),
    [("10.13.2", True, 2, "asked for"), ("11.0.0", False, 0, "always, no flag")],
)
def test_strongly_typed_flag_is_set_where_it_exists(tmp_path, version, flag, flags, feature):
    """TensorRT 10.x gets the STRONGLY_TYPED flag; 11.x has only strongly typed networks."""
    trt = fake_trt(version=version, strongly_typed_flag=flag)
    record = fake_build(trt, tmp_path)
    assert trt.calls[0] == ("create_network", flags)
    assert record.features.strong_typing == feature
    assert record.builder == f"tensorrt {version}"


@pytest.mark.parametrize(("tf32", "call"), [(False, "clear_flag"), (True, "set_flag")])
def test_tf32_is_off_unless_requested(tmp_path, tf32, call):
    """TensorRT's default is TF32 on; the builder clears the flag unless it is requested."""
    trt = fake_trt(version="11.0.0", strongly_typed_flag=False)
    assert fake_build(trt, tmp_path, tf32=tf32).tf32 is tf32
    assert (call, "TF32") in trt.calls


def test_build_options_reach_builder_and_record(tmp_path):
    """Every build option is set on the builder configuration and recorded."""
    trt = fake_trt(version="11.0.0", strongly_typed_flag=False)
    record = fake_build(trt, tmp_path, optimisation_level=5, workspace_mib=64, hardware="ampere-plus", weights="strip")
    assert trt.config.builder_optimization_level == 5
    assert trt.config.hardware_compatibility_level == "AMPERE_PLUS"
    assert ("set_memory_pool_limit", "WORKSPACE", 64 * 2**20) in trt.calls
    assert [c[1] for c in trt.calls if c[0] == "set_flag"] == ["STRIP_PLAN", "REFIT"]
    assert record.features.hardware_compatibility == "ampere-plus"
    assert record.features.weights == "strip"
    assert record.optimisation_level == 5


def test_version_without_refit_is_rejected(tmp_path):
    """Refit plans are an error with a TensorRT that has no REFIT flag."""
    trt = fake_trt(version="11.0.0", strongly_typed_flag=False, refit=False)
    with pytest.raises(UnavailableError, match="this version has no REFIT plans"):
        fake_build(trt, tmp_path, weights="refit")


@pytest.mark.parametrize(("caches", "feature"), [(True, "used"), (False, "rejected: of another version or GPU")])
def test_timing_cache_is_used_or_reported(tmp_path, caches, feature):
    """A timing cache is written after a build, or the record says why it was not used."""
    trt = fake_trt(version="11.0.0", strongly_typed_flag=False, caches=caches)
    record = fake_build(trt, tmp_path, timing_cache=tmp_path / "timings")
    assert (record.features.timing_cache or "").startswith(feature)
    assert (tmp_path / "timings").is_file() is caches


@pytest.mark.parametrize("fault", ["pipe", "device", "large", "folder"])
def test_special_or_huge_timing_cache_is_not_read(tmp_path, fault):
    """A timing cache that is no regular file, or larger than one can be, ends the build at once with its path."""
    path = tmp_path / "timings"
    if fault == "pipe":
        os.mkfifo(path)
    elif fault == "device":
        path.symlink_to("/dev/zero")
    elif fault == "folder":
        path.mkdir()
    else:
        path.touch()
        os.truncate(path, 6 * 2**30)
    with pytest.raises(UsageError, match=r"timing cache .*timings cannot be read"):
        fake_build(fake_trt(version="10.16.1", strongly_typed_flag=True), tmp_path, timing_cache=path)


@pytest.mark.parametrize(
    ("kind", "package", "extra"),
    [("trt", "tensorrt", "trt"), ("torch-trt", "torch_tensorrt", "trt"), ("trt-rtx", "tensorrt_rtx", "trt-rtx")],
)
def test_missing_package_and_gpu_are_both_named(monkeypatch, kind, package, extra):
    """A machine without package and GPU is exit code 5; the error names both, the fix installs and builds."""
    monkeypatch.setattr(plans, "find_gpu", lambda: None)
    monkeypatch.setattr(plans.importlib.util, "find_spec", lambda name: None)
    missing = plans.build_blocker(kind, BuildOptions())
    assert missing == f"the package {package} is not installed and this machine has no NVIDIA GPU with its driver"
    precision = PrecisionRecord(graphs=dict.fromkeys(GRAPHS, GraphPrecision(precision="float16")))
    tensorrt = TensorRtRecord(pending={kind: missing}, precision=precision)
    bundle = Bundle(folder=Path("b"), manifest=replace(small_manifest(), tensorrt=tensorrt), digest="")
    with pytest.raises(UnavailableError, match=f"no {kind} engine was built: the package {package} is not") as caught:
        plans.require_complete(bundle, [kind])
    plans.require_complete(bundle, ["another"])  # pending since an earlier export, and not asked for now
    assert caught.value.exit_code == 5
    assert caught.value.fix == f"on the GPU machine: pip install 'tmi-clnet[{extra}]' && tmi build b"


def test_old_driver_blocks_only_builds_for_this_gpu(monkeypatch):
    """A driver too old for the installed package blocks a build for this GPU, but not for a named target."""
    old = Gpu(name="A100", compute_capability=(8, 0), cuda=(12, 8))
    monkeypatch.setattr(plans, "find_gpu", lambda: old)
    monkeypatch.setattr(nvidia_driver, "_distributions", lambda: {"tensorrt_rtx_cu13_libs"})
    assert "needs a driver for CUDA 13" in (plans.build_blocker("trt-rtx", BuildOptions()) or "")
    assert plans.build_blocker("trt-rtx", BuildOptions(target="sm80")) is None
