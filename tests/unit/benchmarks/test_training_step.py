"""The program that measures a training step: that it runs, that its peak is measured, and near what is computed."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from factories.paths import ROOT
from training_step import BALLAST_VARIABLE, Setting, in_own_process

PROGRAM = ROOT / "benchmarks" / "training_step.py"
PLAIN = Setting(size="small", batch=2, precision="32", checkpointing=False, freeze=(), accumulate=1, threads=1)


@pytest.fixture(scope="module")
def plain() -> dict:
    return in_own_process(PLAIN)


@pytest.mark.slow
def test_the_peak_of_a_step_is_measured_and_rises_by_what_is_planted(plain, monkeypatch):
    planted = 300 * 2**20
    monkeypatch.setenv(BALLAST_VARIABLE, str(planted))
    more = in_own_process(PLAIN)
    assert more["taken"] - plain["taken"] == pytest.approx(planted, rel=0.1)
    assert more["computed"] == plain["computed"]


def test_the_computed_memory_of_the_small_size_is_near_the_measured(plain):
    assert plain["computed"] == pytest.approx(plain["taken"], rel=0.25)
    assert all(seconds > 0 for seconds in plain["seconds"].values())


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"checkpointing": True}, {"precision": "bf16-mixed"}, {"freeze": ("text",)}])
def test_what_saves_memory_is_measured_to_save_it(plain, change):
    less = in_own_process(replace(PLAIN, **change))
    assert less["taken"] < plain["taken"]
    assert less["computed"] < plain["computed"]
    assert less["computed"] == pytest.approx(less["taken"], rel=0.35)


@pytest.mark.slow
def test_a_batch_of_one_and_several_settings_make_a_table_and_a_last_line_of_json():
    argv = [sys.executable, str(PROGRAM), "--batch", "1", "--precision", "32", "bf16-mixed", "--threads", "1"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("| setting |")
    assert [line.split("|")[1].strip() for line in lines[2:4]] == ["small, batch 1, 32", "small, batch 1, bf16-mixed"]
    document = json.loads(lines[-1])
    assert [m["setting"]["precision"] for m in document["measured"]] == ["32", "bf16-mixed"]
