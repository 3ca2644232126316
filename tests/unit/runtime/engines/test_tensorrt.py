"""Checks of the TensorRT engine before it loads a runtime that may crash; tests/gpu tests the rest."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from factories.fake_cuda import DOWNLOAD_S, UPLOAD_S, fake_trt_engine
from factories.small_bundle import small_manifest
from tmi.runtime.bundle.manifest_records import FileSpec
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.bundle.tensorrt_records import (
    GraphPrecision,
    PlanFeatures,
    PlanPrecision,
    PlanRecord,
    PrecisionRecord,
    TensorRtRecord,
)
from tmi.runtime.engines import nvidia_driver
from tmi.runtime.engines import registry as engine_table
from tmi.runtime.engines import tensorrt as trt_engine
from tmi.runtime.engines.nvidia_driver import Gpu, find_gpu, require_driver, require_gpu
from tmi.runtime.engines.precision import plan_precision
from tmi.runtime.engines.registry import ENGINES, open_engine
from tmi.runtime.engines.selection import choose_engine
from tmi.runtime.engines.tensorrt import plan_metadata, require_compatible_plan, tensor_names
from tmi.toolkit.errors import DamagedError, UnavailableError

A100 = Gpu(name="A100", compute_capability=(8, 0), cuda=(13, 0))
L4 = Gpu(name="L4", compute_capability=(8, 9), cuda=(13, 0))
T4 = Gpu(name="T4", compute_capability=(7, 5), cuda=(13, 0))
GPU_ENGINES = [name for name, spec in ENGINES.items() if spec.gpu]


def with_plans(*kinds: str) -> Bundle:
    manifest = small_manifest()
    graphs = tuple(replace(g, artefacts={**g.artefacts, **dict.fromkeys(kinds, "x")}) for g in manifest.graphs)
    return Bundle(folder=Path("b"), manifest=replace(manifest, graphs=graphs), digest="")


@pytest.mark.parametrize("name", GPU_ENGINES)
def test_missing_driver_is_reported_before_any_import(name, monkeypatch):
    """Without a driver no TensorRT runtime is imported, and the error has a fix."""
    monkeypatch.setattr(engine_table, "installed", lambda name: True)
    monkeypatch.setattr(nvidia_driver, "LIBRARIES", ("libnothing.so",))
    with pytest.raises(UnavailableError, match=f"engine {name} needs an NVIDIA GPU with its driver") as caught:
        open_engine(name, with_plans(ENGINES[name].artefact))
    assert "nvidia-smi" in caught.value.fix
    assert caught.value.exit_code == 5
    assert "tensorrt" not in sys.modules


def plan_record(*, hardware: str = "none", target: str | None = None, built_on: str | None = "sm80") -> PlanRecord:
    return PlanRecord(
        builder="tensorrt 11.0.0.5",
        target=target,
        built_on=built_on,
        features=PlanFeatures(hardware_compatibility=hardware),
        profiles=(),
        plan=FileSpec(sha256="00", bytes=2),
    )


@pytest.mark.parametrize(
    ("plan", "gpu", "version"),
    [
        (plan_record(), A100, "11.0.0.5"),
        (plan_record(), A100, "11.0.0.9"),
        (plan_record(hardware="ampere-plus"), L4, "11.0.0.5"),
        (plan_record(target="sm89", built_on=None), L4, "11.0.0.5"),
    ],
)
def test_compatible_plan_is_accepted(plan, gpu, version):
    """A plan for this GPU and TensorRT version is accepted."""
    require_compatible_plan(plan, version, gpu, Path("bundle"))


@pytest.mark.parametrize(
    ("plan", "gpu", "version", "text"),
    [
        (
            plan_record(),
            L4,
            "11.0.0.5",
            r"for a GPU of sm80 \(hardware compatibility: none\), this machine has L4, sm89",
        ),
        (plan_record(hardware="ampere-plus"), T4, "11.0.0.5", "this machine has T4, sm75"),
        (plan_record(), A100, "11.1.0.5", r"were built with tensorrt 11\.0\.0\.5, installed is 11\.1\.0\.5"),
        (plan_record(), A100, "10.13.0", r"installed is 10\.13\.0"),
        (plan_record(target="sm80", built_on=None), L4, "11.0.0.5", "for a GPU of sm80"),
    ],
)
def test_incompatible_plan_is_rejected(plan, gpu, version, text):
    """A plan for another GPU or TensorRT version is rejected before it is deserialized."""
    with pytest.raises(UnavailableError, match=text) as caught:
        require_compatible_plan(plan, version, gpu, Path("bundle"))
    assert caught.value.fix == "build the plans for this machine: tmi build bundle"


def test_undescribed_plans_are_rejected():
    """Plans without metadata in the manifest are rejected."""
    with pytest.raises(DamagedError, match="does not describe its trt plans"):
        plan_metadata(with_plans("trt").manifest, "trt")
    with pytest.raises(DamagedError, match="does not record the precision"):
        plan_precision(small_manifest())


def test_plan_precision_is_the_coarsest():
    """The precision of the pipeline is that of its least exact graph."""
    manifest = small_manifest()
    recorded: dict[str, PlanPrecision] = {"ct-0": "float16", "text-0": "float32", "fusion": "tf32"}
    graphs = {name: GraphPrecision(precision=precision) for name, precision in recorded.items()}
    manifest = replace(manifest, tensorrt=TensorRtRecord(precision=PrecisionRecord(graphs=graphs)))
    assert plan_precision(manifest) == "float16"


def test_auto_uses_gpu_engine_only_with_gpu(monkeypatch):
    """`auto` skips a GPU engine without a GPU and selects it with one."""
    bundle = with_plans("trt-rtx")
    monkeypatch.setattr(engine_table, "installed", lambda name: True)
    monkeypatch.setattr(engine_table, "find_gpu", lambda: None)
    name, reason = choose_engine("auto", bundle)
    assert name in ("openvino-bf16", "openvino")
    assert "trt-rtx: no NVIDIA GPU with its driver" in reason
    assert "torch-trt" not in reason, "engines without graphs in the bundle are not listed"
    monkeypatch.setattr(engine_table, "find_gpu", lambda: A100)
    assert choose_engine("auto", bundle)[0] == "trt-rtx"


def test_tensors_match_by_name_or_by_order():
    """Tensors of a plan are matched by name, or by order if the plan renamed them."""
    spec = small_manifest().graphs[0]
    mode = SimpleNamespace(INPUT="in", OUTPUT="out")

    def engine(*names: str) -> SimpleNamespace:
        kinds = dict(zip(names, ("in", "out", "out"), strict=False))
        return SimpleNamespace(
            num_io_tensors=len(names), get_tensor_name=lambda i: names[i], get_tensor_mode=kinds.__getitem__
        )

    trt = SimpleNamespace(TensorIOMode=mode)
    assert tensor_names(trt, engine("ct", "ct_features"), spec) == {"ct": "ct", "ct_features": "ct_features"}
    assert tensor_names(trt, engine("arg0", "output0"), spec) == {"ct": "arg0", "ct_features": "output0"}
    with pytest.raises(DamagedError, match="the plan of ct-0 has the tensors"):
        tensor_names(trt, engine("arg0", "output0", "output1"), spec)


@pytest.mark.parametrize(
    ("distributions", "package", "cuda", "text"),
    [
        ({"tensorrt_cu13_libs"}, "tensorrt", (12, 8), "tensorrt_cu13_libs needs a driver for CUDA 13"),
        ({"tensorrt_cu13_bindings"}, "tensorrt", (12, 8), "the driver of A100 supports CUDA 12.8 at most"),
        ({"tensorrt_rtx_cu13"}, "tensorrt_rtx", (12, 8), "tensorrt_rtx_cu13 needs a driver for CUDA 13"),
        ({"tensorrt_cu13_libs"}, "tensorrt", (13, 0), None),
        ({"tensorrt_cu12_libs"}, "tensorrt", (13, 0), None),
        ({"tensorrt_rtx_cu13"}, "tensorrt", (12, 8), None),
        ({"tensorrt"}, "tensorrt", (12, 8), None),
    ],
)
def test_outdated_driver_is_rejected(monkeypatch, distributions, package, cuda, text):
    """A driver older than the CUDA version of the installed TensorRT is rejected."""
    monkeypatch.setattr(nvidia_driver, "_distributions", lambda: distributions)
    gpu = replace(A100, cuda=cuda)
    if text is None:
        require_driver(package, gpu)
        return
    with pytest.raises(UnavailableError, match=text) as caught:
        require_driver(package, gpu)
    assert caught.value.exit_code == 5
    assert "install a newer NVIDIA driver" in caught.value.fix


def test_driver_is_checked_before_loading_libraries(monkeypatch):
    """The driver is checked before any TensorRT library is loaded."""

    def fail_on_import(*_: object) -> None:
        raise AssertionError("a library was loaded before the driver was checked")

    monkeypatch.setattr(trt_engine, "require_gpu", lambda what: replace(A100, cuda=(12, 8)))
    monkeypatch.setattr(nvidia_driver, "_distributions", lambda: {"tensorrt_rtx_cu13_libs"})
    monkeypatch.setattr(trt_engine, "_import", fail_on_import)
    with pytest.raises(UnavailableError, match="needs a driver for CUDA 13"):
        trt_engine.TrtRtxEngine().open(with_plans("trt-rtx"), threads=None)


class FakeDriver:
    """libcuda with one A100."""

    def __init__(self, *, init: int = 0, count: int = 1) -> None:
        self.init, self.count = init, count

    def cuInit(self, flags):
        return self.init

    def cuDeviceGetCount(self, count):
        count._obj.value = self.count
        return 0

    def cuDriverGetVersion(self, version):
        version._obj.value = 13020

    def cuDeviceGet(self, device, ordinal):
        device._obj.value = ordinal

    def cuDeviceGetName(self, name, size, device):
        name.value = b"NVIDIA A100"

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = {75: 8, 76: 0}[attribute]


def test_gpu_properties_come_from_the_driver(monkeypatch):
    """Name, compute capability and CUDA version are read from the driver."""
    monkeypatch.setattr(nvidia_driver, "_driver", FakeDriver)
    assert require_gpu("it") == Gpu(name="NVIDIA A100", compute_capability=(8, 0), cuda=(13, 2))
    assert require_gpu("it").target == "sm80"


@pytest.mark.parametrize("driver", [FakeDriver(init=100), FakeDriver(count=0)], ids=["does not start", "no GPU"])
def test_driver_without_gpu_gives_none(driver, monkeypatch):
    """A driver that cannot start or lists no GPU gives None."""
    monkeypatch.setattr(nvidia_driver, "_driver", lambda: driver)
    assert find_gpu() is None


def test_gpu_detection_imports_no_heavy_packages():
    """GPU detection and the engine's module import neither torch nor TensorRT."""
    program = (
        "import sys, tmi.runtime.engines.tensorrt, tmi.runtime.engines.nvidia_driver as d; d.find_gpu();"
        "print([m for m in ('torch', 'tensorrt', 'tensorrt_rtx', 'cuda', 'onnx') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_only_first_upload_and_last_download_count(rows):
    """`copied_seconds` counts the first upload and the last download of each run."""
    engine = fake_trt_engine(largest=2)
    inputs = np.arange(3 * rows, dtype=np.float32).reshape(rows, 3)
    for runs in (1, 2):
        np.testing.assert_array_equal(engine.run("double", {"x": inputs})["y"], 2 * inputs)
        assert engine.copied_seconds == runs * (UPLOAD_S + DOWNLOAD_S)
