"""Training on a GPU: the run's models are exported with every parity check, and memory matches the estimate."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from factories.cases import write_cohort
from factories.tmi_command import tmi

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _torch_has_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")


def test_model_trained_on_gpu_is_exported_and_predicts(tmp_path):
    """A run trained on the GPU is exported with all checks, and its bundle predicts the cohort's cases."""
    cohort, run, bundle, out = (tmp_path / name for name in ("cohort", "run", "bundle", "p.json"))
    write_cohort(cohort, cases=8)
    words = ["--preset", "tiny", "--folds", "2", "--epochs", "2", "--accelerator", "gpu"]
    assert tmi("train", cohort, "--out", run, *words).code == 0
    assert tmi("export", run, "--engine", "onnx", "--out", bundle).code == 0
    assert tmi("predict", cohort, "--bundle", bundle, "-o", out).code == 0
    assert {r["status"] for r in json.loads(out.read_text())["results"]} == {"predicted"}


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_memory_of_a_step_matches_the_estimate(precision):
    """At full size, the peak of torch's allocator is within 15% of the computed memory."""
    import torch

    if torch.cuda.get_device_properties(0).total_memory < 30 * 2**30:
        pytest.skip("the step needs 25 GiB of GPU memory")
    program = ROOT / "benchmarks" / "training_step.py"
    words = [sys.executable, program, "--device", "cuda", "--size", "paper", "--batch", "2", "--precision", precision]
    process = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=True)
    (measured,) = json.loads(process.stdout.splitlines()[-1])["measured"]
    assert measured["taken"] == pytest.approx(measured["computed"], rel=0.15)
