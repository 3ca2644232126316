"""Memory that runs out is told as such, and not as a model that differs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from factories.tmi_command import tmi
from factories.traced_once import use_cached_traces
from tmi.export.bundle import writer as bundle_writer
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
def test_each_library_that_runs_out_of_memory_gives_the_one_error_that_says_where(raising):
    def export() -> None:
        with out_of_memory_as_error("the export", told.append) as tell:
            tell("judging x")
            raising()

    told: list[str] = []
    with pytest.raises(UnavailableError, match="the export ran out of memory while judging x; nothing") as caught:
        export()
    assert told == ["judging x"]
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), KeyError("memory"), OSError("disk full")])
def test_any_other_error_passes_as_it_was(error):
    with pytest.raises(type(error)) as caught, out_of_memory_as_error("the export", lambda line: None):
        raise error
    assert caught.value is error


def test_an_engine_without_memory_in_a_gate_is_no_parity_failure(nano_run, nano_bundle, tmp_path, monkeypatch):
    def starved(self, spec, loaded, inputs):
        raise RuntimeError("Non-zero status code while running Conv node: std::bad_alloc")

    monkeypatch.setattr(OnnxEngine, "_run", starved)
    use_cached_traces(monkeypatch, nano_bundle)
    outcome = tmi("export", nano_run, "--engine", "onnx", "--no-weights", "--out", tmp_path / "bundle")
    assert outcome.code == 5
    assert "error: the export ran out of memory while judging onnx on engine onnx; nothing was written" in outcome.err
    assert "fix: close other programs" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_the_eager_model_without_memory_ends_with_5_too(nano_run, tmp_path, monkeypatch):
    def starved(*_: object) -> None:
        of_torch()

    monkeypatch.setattr(bundle_writer, "eager_reference", starved)
    outcome = tmi("export", nano_run, "--engine", "torchscript", "--out", tmp_path / "bundle")
    assert outcome.code == 5
    assert "ran out of memory while asking the eager model about 4 golden cases" in outcome.err
