"""Trackers log losses, metrics and the config, but no data of a case; they write into the run and use no network."""

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
from tmi.training.loop import hardware as hardware_module
from tmi.training.loop.hardware import HardwareConfig


@pytest.fixture(scope="module")
def config(micro_config: Config) -> Config:
    small = small_config(micro_config)
    return replace(small, train=replace(small.train, epochs=2))


def train_with_tracker(config: Config, folder: Path, tracker: str) -> Path:
    """Train a fold and return the tracker's folder."""
    hardware = HardwareConfig(accelerator="cpu", track=(tracker,))
    train_small(folder / "run" / "fold1", make_arrays(), config, hardware=hardware)
    return folder / "run" / "tracking" / tracker


def validation_losses(folder: Path) -> list[float]:
    return [float(line.split(",")[2]) for line in (folder / "history.csv").read_text().splitlines()[1:]]


@pytest.mark.long
def test_tensorboard_logs_history(config, tmp_path):
    """TensorBoard holds the losses of history.csv and no data of a case."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train_with_tracker(config, tmp_path, "tensorboard")
    events = EventAccumulator(str(folder / "fold1"))
    events.Reload()
    logged = [event.value for event in events.Scalars("validation_loss")]
    assert logged == pytest.approx(validation_losses(tmp_path / "run" / "fold1"), rel=1e-6)
    assert [event.step for event in events.Scalars("train_loss")] == [0, 1]
    require_no_case(folder)


@pytest.mark.filterwarnings("ignore:.*filesystem.*")
def test_mlflow_logs_history_to_local_store(config, tmp_path, monkeypatch):
    """MLflow holds the losses of history.csv in a local store and no data of a case."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = train_with_tracker(config, tmp_path, "mlflow")
    (metric,) = folder.rglob("metrics/validation_loss")
    logged = [float(line.split()[1]) for line in metric.read_text().splitlines()]
    assert logged == pytest.approx(validation_losses(tmp_path / "run" / "fold1"), rel=1e-6)
    assert any(p.name == "train.learning_rate" for p in folder.rglob("params/*"))
    require_no_case(folder)


def require_no_case(folder: Path) -> None:
    """Assert that no file holds a case id or a word of a text."""
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not any(i.encode() in data for i in IDS)
            assert b"Albumin" not in data


@pytest.mark.long
def test_tracker_files_are_not_part_of_run(tmp_path):
    """run.json does not list the files of trackers, and the finished run is valid."""
    cohort = write_cohort(tmp_path / "cohort", cases=8, with_mask=False)
    small = ["--set", "ct.shape_DHW=[8,16,16]", "--set", "clinical.max_length=32", "--track", "tensorboard"]
    options = ["--preset", "tiny", "--folds", "2", "--epochs", "1", "--accelerator", "cpu"]
    outcome = tmi("train", cohort, "--out", tmp_path / "run", *options, *small)
    assert outcome.code == 0, outcome.err
    assert list((tmp_path / "run" / "tracking").rglob("events*"))
    assert not any("tracking" in name for name in json.loads((tmp_path / "run" / "run.json").read_text())["files"])
    RunFolder.open(tmp_path / "run").require_finished()


def test_missing_tracker_package_is_exit_code_5(tmp_path, monkeypatch):
    """A tracker that is not installed is reported before the run folder is created."""
    cohort = write_cohort(tmp_path / "cohort", cases=8, with_mask=False)
    monkeypatch.setattr(hardware_module.importlib.util, "find_spec", lambda name: None)
    outcome = tmi(
        "train", cohort, "--out", tmp_path / "run", "--preset", "tiny", "--track", "mlflow", "--accelerator", "cpu"
    )
    assert outcome.code == 5
    assert "--track mlflow needs the package mlflow" in outcome.err
    assert "tmi-clnet[track]" in outcome.err
    assert not (tmp_path / "run").exists()
