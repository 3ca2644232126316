"""A run that is killed during a fold and resumed has the weights of an uninterrupted run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from factories.cases import write_cohort
from factories.tmi_command import tmi

pytestmark = pytest.mark.long

OPTIONS = ["--preset", "tiny", "--folds", "2", "--epochs", "5", "--accelerator", "cpu"]
SMALL = ["--set", "ct.shape_DHW=[12,24,24]", "--set", "clinical.max_length=64"]


def command(cohort: Path, run: Path, *more: str) -> list[str]:
    # a process that a shell starts in the background ignores Ctrl-C, and its children inherit that
    handle_sigint = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    main = f"{handle_sigint}; from tmi.toolkit.cli.main import main; sys.exit(main())"
    return [sys.executable, "-c", main, "train", str(cohort), "--out", str(run), *OPTIONS, *SMALL, *more]


def fold_files(run: Path) -> dict[str, bytes]:
    names = (
        "model.safetensors",
        "scaler.json",
        "tokenizer.json",
        "predictions.csv",
        "history.csv",
        "metrics.json",
        "validation.csv",
    )
    return {f"{fold}/{name}": (run / fold / name).read_bytes() for fold in ("fold0", "fold1") for name in names}


def stop_after_epochs(process: subprocess.Popen[bytes], history: Path, epochs: int, signal_number: int) -> None:
    """Send the signal once the history holds `epochs` epochs, during the next one."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if history.is_file() and len(history.read_text().splitlines()) > epochs:
            time.sleep(0.02)
            process.send_signal(signal_number)
            return
        assert process.poll() is None, "training ended before it could be killed"
        time.sleep(0.005)
    raise AssertionError("no epoch ended in time")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("resume") / "cohort", cases=16, with_mask=False)


@pytest.fixture(scope="module")
def uninterrupted(cohort: Path) -> Path:
    run = cohort.parent / "uninterrupted"
    subprocess.run(command(cohort, run), check=True, capture_output=True, timeout=200)
    return run


@pytest.mark.timeout(280)
def test_killed_run_resumes_to_same_models(cohort: Path, uninterrupted: Path) -> None:
    """A run killed by SIGKILL during a fold resumes to the files of an uninterrupted run."""
    run = cohort.parent / "killed"
    process = subprocess.Popen(command(cohort, run), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stop_after_epochs(process, run / "fold0" / "history.csv", 2, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (run / "fold0" / "model.safetensors").exists()
    assert json.loads((run / "run.json").read_text())["status"] == "running"

    resumed = tmi("train", cohort, "--out", run, *OPTIONS, *SMALL, "--resume")
    assert resumed.code == 0, resumed.err
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert fold_files(run) == fold_files(uninterrupted)


def test_same_seed_gives_same_weights_across_processes(cohort: Path, uninterrupted: Path) -> None:
    """Runs are bit-identical; the other one ran in a fresh process with a different hash seed."""
    run = cohort.parent / "repeated"
    assert tmi("train", cohort, "--out", run, *OPTIONS, *SMALL).code == 0
    assert fold_files(run) == fold_files(uninterrupted)


@pytest.mark.timeout(280)
def test_ctrl_c_prints_how_to_resume(cohort: Path, uninterrupted: Path) -> None:
    """Ctrl-C ends with exit code 130 and the resume command, and the run resumes to the same files."""
    run = cohort.parent / "interrupted"
    process = subprocess.Popen(command(cohort, run), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    stop_after_epochs(process, run / "fold0" / "history.csv", 1, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"--out {run} --resume" in errors.decode()
    assert "Traceback" not in errors.decode()
    assert tmi("train", cohort, "--out", run, *OPTIONS, *SMALL, "--resume").code == 0
    assert fold_files(run) == fold_files(uninterrupted)
