"""Commands in a project folder without paths: defaults are found and printed, and nothing is overwritten."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from factories.cases import write_cohort
from factories.nano import NANO_OPTIONS
from factories.tmi_command import CommandResult, tmi

MICRO = ("--folds", 2, "--epochs", 1, *NANO_OPTIONS)
"""Options that let `tmi train` finish in seconds."""


def digests(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    write_cohort(folder / "cohort", cases=8, shape_xyz=(20, 20, 20))
    (folder / "tmi.toml").write_text('preset = "tiny"\n')
    return folder


@pytest.fixture(scope="module")
def trained(project) -> CommandResult:
    return tmi("train", *MICRO, cwd=project)


@pytest.fixture(scope="module")
def exported(project, trained) -> CommandResult:
    return tmi("export", "--engine", "onnx", cwd=project)


@pytest.fixture(scope="module")
def predicted(project, exported) -> CommandResult:
    return tmi("predict", "cohort/C000/", cwd=project)


def test_train_uses_cohort_and_names_run(project, trained):
    """`tmi train` uses the folder `cohort`, names the run by date and preset, and prints its defaults."""
    assert trained.code == 0, trained.err
    (run,) = (project / "runs").iterdir()
    assert run.name.endswith("-tiny")
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    for default in ("cohort: cohort", f"run: runs/{run.name}", "preset: tiny"):
        assert default in trained.err


def test_export_uses_newest_finished_run(project, exported):
    """`tmi export` without a path exports the newest finished run to the folder `bundle`."""
    assert exported.code == 0, exported.err
    (run,) = (project / "runs").iterdir()
    assert f"run runs/{run.name} (the newest finished one)" in exported.err
    assert "bundle bundle (the default)" in exported.err
    assert (project / "bundle" / "manifest.json").is_file()


def test_predict_uses_default_bundle(project, predicted):
    """`tmi predict` uses the folder `bundle` and prints which engine `auto` chose."""
    assert predicted.code == 0, predicted.err
    assert "bundle bundle (the default)" in predicted.err
    assert re.search(r"^engine openvino(-bf16)? in (float32|bfloat16) \(auto: ", predicted.err, re.M)
    assert any("C000" in line for line in predicted.out.splitlines())


def test_existing_files_need_force(project, predicted):
    """Export, training and prediction end with code 2 if their output exists, and change nothing."""
    (run,) = (project / "runs").iterdir()
    (project / "predictions.json").write_text("{}")
    before = digests(project)
    outcomes = {
        "bundle bundle exists": tmi("export", "--engine", "onnx", cwd=project),
        f"run runs/{run.name} exists": tmi("train", "--out", f"runs/{run.name}", *MICRO, cwd=project),
        "prediction file predictions.json exists": tmi("predict", "cohort/C000", "-o", "predictions.json", cwd=project),
    }
    for message, outcome in outcomes.items():
        assert outcome.code == 2, outcome.err
        assert f"error: {message}" in outcome.err
        assert "--force" in outcome.err
    assert digests(project) == before


def test_project_file_sets_defaults(project, predicted, tmp_path):
    """`tmi.toml` sets the bundle; a misspelt key is wrong usage."""
    (tmp_path / "tmi.toml").write_text(f'bundle = "{project / "bundle"}"\n')
    outcome = tmi("predict", project / "cohort" / "C001", "--json", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert f"bundle {project / 'bundle'} (from tmi.toml)" in outcome.err
    (tmp_path / "tmi.toml").write_text('bundel = "x"\n')
    outcome = tmi("predict", project / "cohort" / "C001", cwd=tmp_path)
    assert outcome.code == 2
    assert "bundel = 'x' is not a valid setting" in outcome.err


def test_served_folds_match_out_of_fold_predictions(project, predicted):
    """The bundle gives each held-out case the calibrated probability that training wrote for that fold."""
    import csv

    (run,) = (project / "runs").iterdir()
    document = tmi("predict", "cohort", "--engine", "eager", "--json", cwd=project).document
    served = {r["case_id"]: {f["fold"]: f["probability"]["bad"] for f in r["folds"]} for r in document["results"]}
    for fold in (0, 1):
        with (run / f"fold{fold}" / "predictions.csv").open(newline="") as stream:
            for row in csv.DictReader(stream):
                assert served[row["case_id"]][fold] == pytest.approx(float(row["calibrated_bad"]), abs=1e-5)


def test_preset_without_vocabulary_trains_one(project, tmp_path):
    """Each fold trains a vocabulary on its training texts, and the run records its size."""
    sizes = (
        "text_encoder.layers=1",
        "text_encoder.hidden_size=24",
        "radiomics_encoder.hidden=16",
        "head.blocks=[1,1,1,1]",
        "ct_encoder.planes=[4,4,4,4]",
    )
    settings = ("ct.shape_DHW=[8,16,16]", "train.batch_size=4", *(f"network.{size}" for size in sizes))
    small = ("--folds", 2, "--epochs", 1, *(word for setting in settings for word in ("--set", setting)))
    outcome = tmi("train", project / "cohort", "--out", tmp_path / "run", "--preset", "paper", *small)
    assert outcome.code == 0, outcome.err
    assert "no --vocab given: every fold trains a vocabulary of at most 28996 tokens" in outcome.err
    assert json.loads((tmp_path / "run" / "config.json").read_text())["clinical"]["vocab_size"] == 28996
    assert (tmp_path / "run" / "fold0" / "tokenizer.json").is_file()
