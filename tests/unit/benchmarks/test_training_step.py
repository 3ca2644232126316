"""`benchmarks/training_step.py`: it measures the peak memory of a step, and the computed memory is near it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from factories.paths import ROOT
from training_step import BALLAST_VARIABLE, Setting, in_own_process

PROGRAM = ROOT / "benchmarks" / "training_step.py"
BASELINE = Setting(size="small", batch=2, precision="32", checkpointing=False, freeze=(), accumulate=1, threads=1)


@pytest.fixture(scope="module")
def baseline() -> dict:
    return in_own_process(BASELINE)


@pytest.mark.slow
def test_planted_allocation_raises_the_peak(baseline, monkeypatch):
    """An additional allocation of 300 MiB raises the measured memory by that amount."""
    planted = 300 * 2**20
    monkeypatch.setenv(BALLAST_VARIABLE, str(planted))
    more = in_own_process(BASELINE)
    assert more["taken"] - baseline["taken"] == pytest.approx(planted, rel=0.1)
    assert more["computed"] == baseline["computed"]


@pytest.mark.long
def test_computed_memory_is_near_measured(baseline):
    """The memory of `tmi train --plan` is within a quarter of the measured memory."""
    assert baseline["computed"] == pytest.approx(baseline["taken"], rel=0.25)
    assert all(seconds > 0 for seconds in baseline["seconds"].values())


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"checkpointing": True}, {"precision": "bf16-mixed"}, {"freeze": ("text",)}])
def test_memory_savings_are_measured(baseline, change):
    """Each option that saves memory lowers both the measured and the computed memory."""
    less = in_own_process(replace(BASELINE, **change))
    assert less["taken"] < baseline["taken"]
    assert less["computed"] < baseline["computed"]
    assert less["computed"] == pytest.approx(less["taken"], rel=0.35)


@pytest.mark.slow
def test_program_prints_table_and_json():
    """Several settings give a row each, and the last line is JSON; a batch of one is possible."""
    argv = [sys.executable, str(PROGRAM), "--batch", "1", "--precision", "32", "bf16-mixed", "--threads", "1"]
    process = subprocess.run(argv, capture_output=True, text=True, check=True)
    lines = process.stdout.splitlines()
    assert lines[0].startswith("| setting |")
    assert [line.split("|")[1].strip() for line in lines[2:4]] == ["small, batch 1, 32", "small, batch 1, bf16-mixed"]
    document = json.loads(lines[-1])
    assert [m["setting"]["precision"] for m in document["measured"]] == ["32", "bf16-mixed"]
