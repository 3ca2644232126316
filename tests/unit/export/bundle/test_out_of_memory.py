"""Running out of memory is reported as such and not as a parity failure."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from factories.cached_traces import use_cached_traces
from factories.tmi_command import tmi
from tmi.export.bundle import network_stages
from tmi.export.bundle.out_of_memory import out_of_memory_as_error
from tmi.runtime.engines.onnxruntime import OnnxEngine
from tmi.toolkit.errors import UnavailableError


def of_torch() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def of_numpy() -> None:
    np.empty(2**60, dtype=np.uint8)


def of_cuda() -> None:
    raise RuntimeError("CUDA: out of memory")


@pytest.mark.parametrize("raising", [of_torch, of_numpy, of_cuda])
def test_out_of_memory_of_any_library_names_step(raising):
    """The out-of-memory exceptions of torch, numpy and CUDA become one error that names the current step."""

    def export() -> None:
        with out_of_memory_as_error("the export", steps.append) as on_step:
            on_step("validating x")
            raising()

    steps: list[str] = []
    with pytest.raises(UnavailableError, match="the export ran out of memory while validating x; nothing") as caught:
        export()
    assert steps == ["validating x"]
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), KeyError("memory"), OSError("disk full")])
def test_other_errors_pass_unchanged(error):
    """An error that is not about memory passes unchanged."""
    with pytest.raises(type(error)) as caught, out_of_memory_as_error("the export", lambda line: None):
        raise error
    assert caught.value is error


def test_engine_out_of_memory_is_not_parity_failure(nano_run, nano_bundle, tmp_path, monkeypatch):
    """An engine that runs out of memory ends the export with exit code 5, not 4."""

    def out_of_memory(self, spec, loaded, inputs):
        raise RuntimeError("Non-zero status code while running Conv node: std::bad_alloc")

    monkeypatch.setattr(OnnxEngine, "_run", out_of_memory)
    use_cached_traces(monkeypatch, nano_bundle)
    outcome = tmi("export", nano_run, "--engine", "onnx", "--no-weights", "--out", tmp_path / "bundle")
    assert outcome.code == 5
    assert (
        "error: the export ran out of memory while validating onnx on engine onnx; nothing was written" in outcome.err
    )
    assert "fix: close other programs" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_eager_model_out_of_memory_exits_with_5(nano_run, tmp_path, monkeypatch):
    """An eager model that runs out of memory ends the export with exit code 5."""

    def out_of_memory(*_: object) -> None:
        of_torch()

    monkeypatch.setattr(network_stages, "compute_eager_reference", out_of_memory)
    outcome = tmi("export", nano_run, "--engine", "torchscript", "--out", tmp_path / "bundle")
    assert outcome.code == 5
    assert "ran out of memory while running the eager model on 4 golden cases" in outcome.err
