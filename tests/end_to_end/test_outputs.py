"""Outputs of commands: two commands never write one, a killed command can be repeated, a bad place is found early."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from factories.cases import write_case, write_cohort
from factories.paths import ROOT
from factories.table_workspace import HEADER, MAPPING
from factories.tmi_command import CommandResult, tmi
from tmi.toolkit.errors import ExitCode
from tmi.toolkit.storage import outputs
from tmi.toolkit.storage.hashing import sha256_file

PUBLISHED = ROOT / "tests" / "unit" / "runtime" / "bundle" / "data" / "tmi-bundle-2"
HOLD = """
import sys, time
from pathlib import Path
from tmi.toolkit.storage.outputs import output_lock
with output_lock(Path(sys.argv[1])):
    print("open", flush=True)
    time.sleep(60)
"""
Command = Callable[[Path], CommandResult]


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A cohort, a case, a table and its mapping."""
    write_cohort(tmp_path / "cohort", cases=8)
    write_case(tmp_path / "P1")
    (tmp_path / "t.csv").write_text(HEADER + "1,f,40,1.0,dead\n")
    (tmp_path / "m.yaml").write_text(MAPPING)
    return tmp_path


COMMANDS = {
    "synth": lambda i, out: ("synth", out, "--cases", 2),
    "import": lambda i, out: ("import", out, "--ct", i / "P1" / "ct.nii.gz", "--clinical", i / "P1" / "clinical.json"),
    "import-table": lambda i, out: ("import", out, "--table", i / "t.csv", "--map", i / "m.yaml"),
    "predict": lambda i, out: ("predict", i / "P1", "--bundle", i / "none", "-o", out),
    "explain": lambda i, out: ("explain", i / "P1", "--bundle", i / "none", "--out", out),
    "report": lambda i, out: ("report", i / "P1", "--bundle", i / "none", "--out", out),
    "train": lambda i, out: ("train", i / "cohort", "--preset", "tiny", "--folds", 2, "--out", out),
    "compare": lambda i, out: ("compare", i / "cohort", "--table", "1", "--preset", "tiny", "--folds", 2, "--out", out),
    "pretrain-text": lambda i, out: ("pretrain-text", "--preset", "tiny", "--steps", 1, "--out", out),
}


@contextmanager
def another_command(target: Path) -> Iterator[None]:
    """Another process that writes `target`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(target)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "open\n"
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("name", COMMANDS)
def test_second_command_ends_at_once(inputs, name):
    """Exit code 2 and the owner's process id, before any work: the bundle to predict with is not even opened."""
    out = inputs / "out"
    with another_command(out):
        outcome = tmi(*COMMANDS[name](inputs, out))
    assert outcome.code == int(ExitCode.USAGE), outcome.err
    assert f"{out} is being written by another command (process " in outcome.err


@pytest.mark.parametrize("name", COMMANDS)
def test_place_that_cannot_be_written_is_found_before_the_work(inputs, name):
    """A path below a file ends with exit code 2."""
    outcome = tmi(*COMMANDS[name](inputs, inputs / "t.csv" / "out"))
    assert outcome.code == int(ExitCode.USAGE), outcome.err
    assert "cannot be written" in outcome.err


@pytest.mark.parametrize("name", COMMANDS)
def test_full_disk_is_found_before_the_work(inputs, name, monkeypatch):
    """A disk without free space ends with exit code 5, and nothing is left."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(outputs.os, "fsync", full)
    before = sorted(inputs.iterdir())
    outcome = tmi(*COMMANDS[name](inputs, inputs / "out"))
    assert outcome.code == int(ExitCode.UNAVAILABLE), outcome.err
    assert "cannot be written: No space left on device" in outcome.err
    assert sorted(inputs.iterdir()) == before


def test_second_export_leaves_the_bundle(tmp_path, nano_run, nano_bundle):
    """`tmi export --force` to a place that another export writes ends with 2; the bundle there stays as it is."""
    bundle = Path(shutil.copytree(nano_bundle, tmp_path / "bundle"))
    digests = {p: sha256_file(p) for p in bundle.rglob("*") if p.is_file()}
    with another_command(bundle):
        outcome = tmi("export", nano_run, "--out", bundle, "--engine", "onnx", "--force")
    assert outcome.code == int(ExitCode.USAGE), outcome.err
    assert {p: sha256_file(p) for p in bundle.rglob("*") if p.is_file()} == digests


def test_radiomics_and_repair_of_a_locked_case_are_rejected(inputs):
    """The case whose table another command writes is rejected before its extraction; the others are done."""
    for name in ("P1", "cohort/C000"):
        (inputs / name / "radiomics.csv").unlink()
    with another_command(inputs / "P1" / "radiomics.csv"):
        outcome = tmi("radiomics", inputs / "P1", inputs / "cohort" / "C000", "--jobs", 1)
    assert (outcome.code, "1 written" in outcome.out + outcome.err) == (3, True), outcome.err
    with another_command(inputs / "P1" / "case.json"):
        outcome = tmi("check", inputs / "P1", "--fix", "ct-padding")
    assert (outcome.code, "is being written by another command" in outcome.out) == (3, True), outcome.out


def test_disk_that_fills_during_a_report_ends_with_5(tmp_path):
    """A limit on the size of files acts as a full disk: no exit code 0, no page, a message with a fix."""
    words = ("report", PUBLISHED / "case", "--bundle", PUBLISHED / "bundle", "--engine", "onnx", "--threads", 1)
    words = (*words, "--out", tmp_path / "report")
    outcome = subprocess.run(
        [sys.executable, "-c", "from tmi.toolkit.cli.main import main; main()", *map(str, words)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        env={**os.environ, "TMI_CACHE": "off"},
        capture_output=True,
        text=True,
    )
    assert outcome.returncode == int(ExitCode.UNAVAILABLE), outcome.stderr
    assert "error: File too large" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not list((tmp_path / "report").rglob("*.html"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("words", [("--version",), ("inspect", PUBLISHED / "bundle", "--json")])
def test_full_disk_behind_a_redirection_ends_with_5(words):
    """Standard output that cannot be written is an error, with the code of a full disk."""
    with open("/dev/full", "w") as full:
        program = "from tmi.toolkit.cli.main import main; main()"
        outcome = subprocess.run(
            [sys.executable, "-c", program, *map(str, words)], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert outcome.returncode == int(ExitCode.UNAVAILABLE), outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_killed_synth_is_repeated_and_its_workers_end(tmp_path):
    """After a kill no worker stays, and another seed gives its own cohort without a case of the first."""
    program = "from tmi.toolkit.cli.main import main\nif __name__ == '__main__':\n    main()\n"
    (tmp_path / "tmi.py").write_text(program)
    words = ["synth", str(tmp_path / "cohort"), "--cases", "12", "--seed", "1", "--jobs", "2"]
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    process = subprocess.Popen([sys.executable, str(tmp_path / "tmi.py"), *words], env=environment)
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob(".cohort.*.part/*/ct.nii.gz")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    outcome = tmi("synth", tmp_path / "cohort", "--cases", 2, "--seed", 2, "--jobs", 1)
    assert outcome.code == 0, outcome.err
    assert sorted(p.name for p in (tmp_path / "cohort").iterdir() if p.is_dir()) == ["syn2-0001", "syn2-0002"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cohort", "tmi.py"]


KILLED = ("config.json", "clinical_schema.json", "folds.json", "folds.json.part")
SMALL = ("ct.shape_DHW=[8,16,16]", "clinical.vocab_size=200", "network.ct_encoder.planes=[4,4,4,4]")
TRAIN = ("--preset", "tiny", "--folds", 2, "--epochs", 1, "--no-cache", *(w for s in SMALL for w in ("--set", s)))


@pytest.mark.parametrize("option", ["--resume", "--force"])
def test_training_killed_before_run_json_starts_again(inputs, option):
    """Both options start the run; without them the folder is not touched. A folder that is no run is never replaced."""
    run = inputs / "run"
    run.mkdir()
    for name in KILLED:
        (run / name).write_text("half")
    words = ("train", inputs / "cohort", "--out", run, *TRAIN)
    assert tmi(*words).code == int(ExitCode.USAGE)
    assert {p.read_text() for p in run.iterdir()} == {"half"}
    outcome = tmi(*words, option)
    assert outcome.code == 0, outcome.err
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    (run / "run.json").unlink()
    assert tmi(*words, "--force").code == int(ExitCode.USAGE)
    assert (run / "fold0").is_dir()


def test_resume_of_a_run_that_was_never_started_starts_it(inputs):
    """A training killed while it prepared the cohort left no folder; its resume command is the one that it printed."""
    outcome = tmi("train", inputs / "cohort", "--out", inputs / "run", *TRAIN, "--resume")
    assert outcome.code == 0, outcome.err
    assert "was not started; it starts now" in outcome.err
