"""`tmi train` end to end: files of the run folder, printed output, and `--set`."""

from __future__ import annotations

import csv
import io
import json
import statistics
from pathlib import Path

import pytest

from factories.cases import write_cohort
from factories.tmi_command import CommandResult, tmi
from tmi.toolkit.run_folder import RunFolder
from tmi.training.evaluation.metrics import METRICS

OPTIONS = ["--preset", "tiny", "--folds", "2", "--epochs", "2", "--accelerator", "cpu"]
SMALL = [
    "ct.shape_DHW=[8,16,16]",
    "clinical.vocab_size=200",
    "network.ct_encoder.planes=[4,4,4,4]",
    "network.text_encoder.layers=1",
    "network.radiomics_encoder.hidden=8",
    "network.head.blocks=[1,1]",
]
FOLD_FILES = {
    "history.csv", "machine.json", "metrics.json", "model.safetensors", "predictions.csv", "scaler.json",
    "tokenizer.json", "validation.csv",
}  # fmt: skip


def train(cohort: Path, out: Path, *settings: str) -> CommandResult:
    assignments = [part for setting in (*SMALL, *settings) for part in ("--set", setting)]
    return tmi("train", cohort, "--out", out, *OPTIONS, *assignments)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("run") / "cohort", cases=10, with_mask=False)


@pytest.fixture(scope="module")
def run(cohort: Path) -> tuple[Path, CommandResult]:
    out = cohort.parent / "run"
    outcome = train(cohort, out)
    assert outcome.code == 0, outcome.err
    return out, outcome


@pytest.fixture(scope="module")
def released(cohort: Path) -> tuple[Path, CommandResult]:
    out = cohort.parent / "released"
    settings = ("train.protocol=released", "radiomics.fit_on=cohort", "clinical.max_length=32")
    outcome = train(cohort, out, *settings)
    assert outcome.code == 0, outcome.err
    return out, outcome


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_run_folder_holds_documented_files(run):
    """The run folder holds the documented files and no others."""
    folder, _ = run
    assert {p.name for p in folder.iterdir()} == {
        "run.json", "config.json", "folds.json", "clinical_schema.json", "summary.json", "summary.md", "fold0", "fold1",
    }  # fmt: skip
    for fold in ("fold0", "fold1"):
        assert {p.name for p in (folder / fold).iterdir()} == FOLD_FILES
    assert {p.name for p in folder.parent.iterdir() if p.name.startswith(".")} == set()
    RunFolder.open(folder).require_finished()


def test_predictions_cover_held_out_cases_once(run):
    """The predictions of each fold list its test cases, and each case is in one fold."""
    folder, _ = run
    folds = read(folder / "folds.json")["folds"]
    predicted = []
    for split in folds:
        rows = csv.DictReader(io.StringIO((folder / f"fold{split['fold']}" / "predictions.csv").read_text()))
        ids = [r["case_id"] for r in rows]
        assert ids == split["test"]
        predicted += ids
    assert sorted(predicted) == [f"C{i:03d}" for i in range(10)]


def test_summary_has_mean_and_sd_over_folds(run):
    """The summary holds the mean and sample standard deviation of the folds' metrics."""
    folder, outcome = run
    summary = read(folder / "summary.json")
    metrics = [read(folder / f"fold{i}" / "metrics.json")["test"] for i in range(2)]
    assert [f["test"] for f in summary["folds"]] == metrics
    page = (folder / "summary.md").read_text()
    assert summary["positive_class"] == "bad"
    for name in METRICS:
        values = [f[name] for f in metrics]
        assert summary["over_folds"][name]["mean"] == pytest.approx(statistics.mean(values))
        assert summary["over_folds"][name]["std"] == pytest.approx(statistics.stdev(values))
        assert f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}" in page
    assert "ROC AUC" in page
    assert "Bal. ACC" in page
    assert str(folder) in outcome.out


def test_random_weights_are_reported(run):
    """Without pre-trained weights the command states that all weights are random."""
    assert "no pre-trained weights given: every encoder starts from random weights" in run[1].err


def test_set_changes_the_config(run):
    """`--set` assignments are in the run's config."""
    config = read(run[0] / "config.json")
    assert config["ct"]["shape_DHW"] == [8, 16, 16]
    assert config["network"]["ct_encoder"]["planes"] == [4, 4, 4, 4]
    assert (config["train"]["folds"], config["train"]["epochs"], config["preset"]) == (2, 2, "tiny")


def test_unknown_setting_is_wrong_usage(cohort, tmp_path):
    """An unknown setting is exit code 2, and no run is created."""
    outcome = train(cohort, tmp_path / "run", "train.learning=1")
    assert outcome.code == 2
    assert "unknown setting" in outcome.err
    assert not (tmp_path / "run").exists()


def test_default_run_has_no_optimism_note(run):
    """The summary of the default protocol names the inner split and has no notes."""
    folder, outcome = run
    page = (folder / "summary.md").read_text()
    assert "lowest cross entropy on the inner validation split" in page
    assert "optimistic" not in page + outcome.out
    assert read(folder / "summary.json")["notes"] == []


def test_released_run_has_optimism_note(released):
    """The summary and the printed output of a `released` run state why its metrics are optimistic."""
    folder, outcome = released
    page = (folder / "summary.md").read_text()
    shown = " ".join(outcome.out.split())
    for reason in (
        "These metrics are optimistic",
        "the best epoch is picked on the very fold that is reported",
        "cases of one patient may lie on both sides of a split",
        "the folds are not stratified",
        "scaled over the whole cohort, held-out cases included",
    ):
        assert reason in page
        assert reason in shown
    assert "inner validation split" not in page
    assert "lowest cross entropy on the very fold that is reported" in page


def test_truncated_texts_are_reported(released):
    """The number of truncated texts is in the notes and in the printed output."""
    folder, outcome = released
    note = "10 clinical text(s) are longer than 32 tokens and were truncated."
    assert note in read(folder / "summary.json")["notes"]
    assert note in " ".join(outcome.out.split())


def test_cohort_wide_scaler_has_optimism_note(micro_config):
    """A scaler fitted on the whole cohort is noted under any protocol."""
    from dataclasses import replace

    from tmi.training.evaluation.summary import optimism_note

    leaky = replace(micro_config, radiomics=replace(micro_config.radiomics, fit_on="cohort"))
    assert optimism_note(micro_config) == ""
    assert "scaled over the whole cohort" in optimism_note(leaky)
    assert "epoch" not in optimism_note(leaky)


def test_cohort_of_rejected_cases_is_rejected(tmp_path):
    """A cohort whose cases are all rejected is exit code 3, not "too few cases"."""
    folder = write_cohort(tmp_path / "cohort", cases=2, with_mask=False)
    for record in folder.glob("*/clinical.json"):
        record.write_text("{")
    outcome = train(folder, tmp_path / "run")
    assert outcome.code == 3
    assert "none of the 2 cases" in outcome.err
    assert "too few" not in outcome.err
    assert not (tmp_path / "run").exists()


def test_unreadable_file_changes_the_fingerprint(cohort, monkeypatch):
    """A file without read permission changes the cohort's fingerprint and raises no error."""
    from tmi.toolkit.cases import fingerprint as module
    from tmi.toolkit.cases.case import open_cohort

    readable, original = module.cohort_fingerprint(open_cohort(cohort)), module.sha256_file
    denied = open_cohort(cohort).cases[0].ct

    def hashed(path):
        if path == denied:
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(module, "sha256_file", hashed)
    assert module.cohort_fingerprint(open_cohort(cohort)) != readable


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "7"], "train differs: train.epochs was 2, is 7"),
        (["--set", "train.seed=1"], "train differs: train.seed was 42, is 1"),
        (["--set", "network.fusion.tcaf=false"], "network differs: network.fusion.tcaf was True, is False"),
        (["--vocab", "{run}/fold0/tokenizer.json"], "config (clinical differs: clinical.vocab_size was 200, is None)"),
    ],
)
def test_resuming_finished_run_with_other_options_is_rejected(options, message, run, cohort):
    """A finished run changes no more: other options end with exit code 2, equal ones say that it is finished."""
    folder, _ = run
    assignments = [part for setting in SMALL for part in ("--set", setting)]
    resume = ["train", cohort, "--out", folder, *OPTIONS, *assignments, "--resume"]
    before = (folder / "run.json").read_bytes()
    outcome = tmi(*resume, *(o.format(run=folder) for o in options))
    assert (outcome.code, message in outcome.err) == (2, True), outcome.err
    assert tmi(*resume).out == f"run {folder} is already finished; next: tmi export {folder}\n"
    assert (folder / "run.json").read_bytes() == before


def test_resuming_finished_run_on_another_cohort_is_rejected(run, tmp_path):
    """A finished run is not resumed on another cohort either."""
    other = write_cohort(tmp_path / "cohort", cases=10, seed=1, with_mask=False)
    assignments = [part for setting in SMALL for part in ("--set", setting)]
    outcome = tmi("train", other, "--out", run[0], *OPTIONS, *assignments, "--resume")
    assert (outcome.code, "on a different cohort" in outcome.err) == (2, True), outcome.err
