"""Trackers are told losses, figures and the config, nothing of a case; they write into the run and to no network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from factories.cases import write_cohort
from factories.small_fold import IDS, make_arrays, small_config, train_small
from factories.tmi_command import tmi
from tmi.toolkit.config.schema import Config
from tmi.toolkit.run_folder import RunFolder
from tmi.training.loop import hardware as running_module
from tmi.training.loop.hardware import HardwareConfig


@pytest.fixture(scope="module")
def config(micro_config: Config) -> Config:
    small = small_config(micro_config)
    return replace(small, train=replace(small.train, epochs=2))


def told_to(config: Config, folder: Path, tracker: str) -> Path:
    """The tracker's folder after a fold."""
    hardware = HardwareConfig(accelerator="cpu", track=(tracker,))
    train_small(folder / "run" / "fold1", make_arrays(), config, hardware=hardware)
    return folder / "run" / "tracking" / tracker


def validation_losses(folder: Path) -> list[float]:
    return [float(line.split(",")[2]) for line in (folder / "history.csv").read_text().splitlines()[1:]]


def test_tensorboard_is_told_the_losses_of_history(config, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = told_to(config, tmp_path, "tensorboard")
    events = EventAccumulator(str(folder / "fold1"))
    events.Reload()
    told = [event.value for event in events.Scalars("validation_loss")]
    assert told == pytest.approx(validation_losses(tmp_path / "run" / "fold1"), rel=1e-6)
    assert [event.step for event in events.Scalars("train_loss")] == [0, 1]
    require_no_case(folder)


@pytest.mark.filterwarnings("ignore:.*filesystem.*")
def test_mlflow_is_told_the_losses_of_history_in_a_local_store(config, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = told_to(config, tmp_path, "mlflow")
    (metric,) = folder.rglob("metrics/validation_loss")
    told = [float(line.split()[1]) for line in metric.read_text().splitlines()]
    assert told == pytest.approx(validation_losses(tmp_path / "run" / "fold1"), rel=1e-6)
    assert any(p.name == "train.learning_rate" for p in folder.rglob("params/*"))
    require_no_case(folder)


def require_no_case(folder: Path) -> None:
    """No file holds a case id or a word of a text."""
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not any(i.encode() in data for i in IDS)
            assert b"Albumin" not in data


def test_what_trackers_wrote_is_no_part_of_the_run(tmp_path):
    cohort = write_cohort(tmp_path / "cohort", cases=8, with_mask=False)
    small = ["--set", "ct.shape_DHW=[8,16,16]", "--set", "clinical.max_length=32", "--track", "tensorboard"]
    options = ["--preset", "tiny", "--folds", "2", "--epochs", "1", "--accelerator", "cpu"]
    outcome = tmi("train", cohort, "--out", tmp_path / "run", *options, *small)
    assert outcome.code == 0, outcome.err
    assert list((tmp_path / "run" / "tracking").rglob("events*"))
    assert not any("tracking" in name for name in json.loads((tmp_path / "run" / "run.json").read_text())["files"])
    RunFolder.open(tmp_path / "run").require_finished()


def test_a_tracker_that_is_not_installed_is_exit_code_5_before_anything_is_done(tmp_path, monkeypatch):
    cohort = write_cohort(tmp_path / "cohort", cases=8, with_mask=False)
    monkeypatch.setattr(running_module.importlib.util, "find_spec", lambda name: None)
    outcome = tmi(
        "train", cohort, "--out", tmp_path / "run", "--preset", "tiny", "--track", "mlflow", "--accelerator", "cpu"
    )
    assert outcome.code == 5
    assert "--track mlflow needs the package mlflow" in outcome.err
    assert "tmi-clnet[track]" in outcome.err
    assert not (tmp_path / "run").exists()
