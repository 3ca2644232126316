"""CUDA engines of ONNX Runtime on a machine without a GPU; tests/gpu runs them on one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tmi.runtime.bundle.reader import open_bundle
from tmi.runtime.engines import onnxruntime as onnxruntime_engine
from tmi.runtime.engines import registry as engine_table
from tmi.runtime.engines.nvidia_driver import Gpu
from tmi.runtime.engines.registry import ENGINES, missing_requirement, open_engine
from tmi.runtime.engines.selection import choose_engine
from tmi.toolkit.errors import UnavailableError

H100 = Gpu(name="H100", compute_capability=(9, 0), cuda=(13, 0))
CUDA_ENGINES = [name for name, spec in ENGINES.items() if spec.gpu and not spec.plans]


@pytest.fixture
def h100(monkeypatch):
    """Simulate a machine with a GPU."""
    monkeypatch.setattr(engine_table, "require_gpu", lambda what: H100)
    monkeypatch.setattr(engine_table, "find_gpu", lambda: H100)


def test_cpu_fallback_of_onnxruntime_is_an_error(monkeypatch, tiny_bundle, h100):
    """A session that ONNX Runtime silently moved to the CPU is not used."""
    requested = []

    def session(source, options, providers, disabled_optimizers):
        requested.append(providers)
        return SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"], disable_fallback=lambda: None)

    monkeypatch.setattr(onnxruntime_engine, "missing_cuda_provider", lambda: None)
    monkeypatch.setattr(onnxruntime_engine.onnxruntime, "InferenceSession", session)
    with pytest.raises(UnavailableError, match="cannot use its CUDA provider") as caught:
        open_engine("onnx-cuda", open_bundle(tiny_bundle))
    assert "onnxruntime-gpu" in caught.value.fix
    assert requested[0][0][1]["use_tf32"] == "0"


@pytest.mark.parametrize("name", ["onnx-cuda", "torchscript-cuda", "eager-cuda"])
def test_missing_cuda_build_is_named(name, tiny_bundle, h100):
    """With a GPU but a CPU build of the package, the requirement is reported and the engine cannot be opened."""
    assert "CUDA" in str(missing_requirement(name))
    bundle = open_bundle(tiny_bundle)
    if bundle.has(ENGINES[name].artefact):
        with pytest.raises(UnavailableError, match=f"engine {name} cannot run here: this .* CUDA"):
            open_engine(name, bundle)


@pytest.mark.parametrize("name", CUDA_ENGINES)
def test_requirement_without_a_gpu(name):
    """Without a GPU the requirement is the GPU."""
    assert missing_requirement(name) == "no NVIDIA GPU with its driver"


def test_auto_says_why_a_gpu_engine_is_skipped(tiny_bundle, monkeypatch, h100):
    """On a machine with a GPU the reason names the GPU engine that was skipped; without one it is not mentioned."""
    bundle = open_bundle(tiny_bundle)
    assert "onnx-cuda: this onnxruntime has no CUDA provider" in choose_engine("auto", bundle)[1]
    monkeypatch.setattr(engine_table, "find_gpu", lambda: None)
    assert "cuda" not in choose_engine("auto", bundle)[1]
