"""What a new user types in the first hour: mistakes, which are reported at once, and right commands.

The commands of a table run in one child process, each in a fork of it, so that what it imports and its time are seen.
"""

from __future__ import annotations

import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from factories.first_hour import write_first_hour
from factories.forked_commands import ForkedResult, run_forked
from factories.mistakes import LIMIT_SECONDS, MISTAKES
from factories.right_commands import RIGHT, SLOW, Right

TORCH = {"torch", "transformers", "monai", "lightning", "sklearn", "captum", "onnxscript"}
NO_ENGINE = {*TORCH, "onnx", "openvino", "radiomics", "SimpleITK", "pandas", "matplotlib"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, nano_run: Path) -> Path:
    return write_first_hour(tmp_path_factory.mktemp("first-hour"), nano_run)


@pytest.fixture(scope="module")
def mistakes(folder: Path) -> dict[str, ForkedResult]:
    before = sorted(folder.rglob("*"))
    results = run_forked([shlex.split(words) for words in MISTAKES], cwd=folder)
    assert sorted(folder.rglob("*")) == before, "a mistake wrote or removed a file"
    return dict(zip(MISTAKES, results, strict=True))


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory, nano_run: Path) -> dict[str, ForkedResult]:
    folder = write_first_hour(tmp_path_factory.mktemp("right"), nano_run)
    results = run_forked([shlex.split(row.words) for row in RIGHT], cwd=folder)
    return {row.words: result for row, result in zip(RIGHT, results, strict=True)}


def message(result: ForkedResult) -> str:
    """Text of the error: the line that begins with `error:`, or what stands in the frame of a wrong usage."""
    line = re.search(r"^error: (.*)$", result.err, re.M)
    frame = " ".join(re.findall(r"^\u2502 (.*?) *\u2502$", result.err, re.M))
    return line[1] if line else frame


def test_tables_have_the_promised_size():
    """At least 90 mistakes and 60 right commands, of every command."""
    assert len(MISTAKES) >= 90
    assert len(RIGHT) + len(SLOW) >= 60


@pytest.mark.parametrize("words", MISTAKES)
def test_mistake_is_reported_at_once(words, mistakes):
    """Exit code 2, one message with its fix or the usage, in under a second, without torch or an engine."""
    result = mistakes[words]
    assert result.code == 2, result.err
    assert message(result).startswith(MISTAKES[words]), result.err
    assert "\n  fix: " in result.err or result.err.startswith("Usage: tmi"), result.err
    assert "Traceback" not in result.err
    assert result.out == ""
    assert set(result.heavy) & NO_ENGINE == set()
    assert result.seconds < LIMIT_SECONDS


def check(row: Right, result: ForkedResult) -> None:
    assert result.code == row.code, result.err
    first = next((line.strip() for line in result.out.splitlines() if line.strip()), "")
    assert first.startswith(row.first_line), result.out
    assert "Traceback" not in result.err
    assert result.seconds < row.seconds


@pytest.mark.parametrize("row", RIGHT, ids=lambda row: row.words or "no words")
def test_right_command(row, right):
    """Exit code, first line and time of a command; none of these needs torch."""
    check(row, right[row.words])
    assert set(right[row.words].heavy) & TORCH == set()


@pytest.mark.slow
def test_right_commands_with_torch(tmp_path, nano_run):
    """Training, export, explanation and extraction: exit code, first line and time of each, one after another."""
    results = run_forked([shlex.split(row.words) for row in SLOW], cwd=write_first_hour(tmp_path, nano_run))
    for row, result in zip(SLOW, results, strict=True):
        check(row, result)


@pytest.mark.parametrize("words", ["export runs/nothere", "report case --out full", "train cohort --accelerator tpu"])
def test_mistake_takes_less_than_a_second_with_the_start(words, folder):
    """Processor time of a whole process, the best of three, so that other load has little influence."""
    seconds = []
    while len(seconds) < 3 and not (seconds and seconds[-1] < 1.0):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-m", "tmi", *words.split()], cwd=folder, capture_output=True, env=dict(os.environ)
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 2
    assert min(seconds) < 1.0
