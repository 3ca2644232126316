"""`tmi audit` on what it cannot decide: the origin of given files, metrics that are too good, spellings of an id."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest

from factories.audited_run import OPTIONS, SMALL, audit, plant_shared_patient, train
from factories.tmi_command import tmi
from tmi.toolkit.cases.case import open_cohort
from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.preprocessing.clinical_features import clinical_inputs
from tmi.toolkit.run_folder import RunFolder
from tmi.training.leakage_audit.run_checks import auc_gap

# Origin of given weights and vocabularies


def write_origin(run: Path, origin: dict | None) -> None:
    """Record CT weights of this origin, as a training with --ct-weights does; None: as an earlier version."""
    record = {"encoder": "ct", "file": "w.pth", "sha256": "0" * 64} | ({} if origin is None else {"origin": origin})
    (run / "pretrained.json").write_text(json.dumps({"ct": record}))
    RunFolder.open(run).finish()


def held_out(run: Path) -> str:
    return str(json.loads((run / "folds.json").read_text())["folds"][1]["test"][0])


@pytest.mark.parametrize(
    ("origin", "status", "text"),
    [
        (lambda run: {"kind": "run", "run": "x", "cohort": "", "cases": [f" {held_out(run).lower()}"]}, "leak", "'x'"),
        (lambda run: {"kind": "run", "run": "x", "cohort": "", "cases": ["other"]}, "holds", "none of the held-out"),
        (lambda run: {"kind": "bundle", "run": "x", "cohort": RunFolder.open(run).state["cohort"]["fingerprint"]},
         "leak", "of this cohort"),
        (lambda run: {"kind": "bundle", "run": "x", "cohort": "else"}, "warning", "is not recorded"),
        (lambda run: {"kind": "synthetic"}, "holds", "synthetic records"),
        (lambda run: {"kind": "unknown"}, "warning", "origin is not known"),
        (lambda run: None, "warning", "origin is not known"),
    ],
)  # fmt: skip
def test_origin_of_initial_weights_is_compared_with_held_out_cases(origin, status, text, copy):
    """Weights that were fitted on a held-out case are a leak, those of unknown origin a warning."""
    write_origin(copy, origin(copy))
    outcome, _ = audit(copy, None)
    assert outcome.code == (6 if status == "leak" else 0)
    answers = [a for a in outcome.document["answers"] if a["check"] == "initial-weights"]
    assert status in {a["status"] for a in answers} <= {status, "holds"}
    assert any(text in a["detail"] for a in answers if a["status"] == status)
    assert outcome.document["verdict"] == ("leak" if status == "leak" else "clean")


@pytest.mark.parametrize("place", ["fold of another run", "copy of it", "trained on the whole cohort"])
def test_origin_of_given_vocabulary_is_audited(place, clean, cohort, tmp_path):
    """A vocabulary of another run's fold is a leak for the cases it was trained on; a copy's origin is unknown."""
    vocabulary, other = tmp_path / "tokenizer.json", clean.parent / "other"
    if not other.exists():
        train(cohort, other, "train.seed=7")
    if place == "trained on the whole cohort":
        schema, config = RunFolder.open(clean).schema, RunFolder.open(clean).config
        texts = [clinical_inputs(case, config, schema).text for case in open_cohort(cohort).cases]
        Tokenizer.train(texts, 200).save(vocabulary)
    elif place == "copy of it":
        shutil.copyfile(other / "fold0" / "tokenizer.json", vocabulary)
    else:
        vocabulary = other / "fold0" / "tokenizer.json"
    assignments = [part for setting in SMALL for part in ("--set", setting)]
    run = tmp_path / "run"
    outcome = tmi("train", cohort, "--out", run, *OPTIONS, *assignments, "--vocab", vocabulary)
    assert outcome.code == 0, outcome.err
    outcome, checks = audit(run, cohort, "--no-model")
    assert ("vocabulary" in checks.get("leak", ())) == (place != "copy of it")
    assert ("vocabulary" in checks.get("warning", ())) == (place == "copy of it")


# Held-out metrics that are too good


def write_separated(run: Path, table: str, *, separated: bool) -> None:
    """Give the predictions of a table an AUC of 1, or of about 0.5."""
    for path in run.glob(f"fold*/{table}.csv"):
        rows = list(csv.DictReader(io.StringIO(path.read_text())))
        for i, row in enumerate(rows):
            high = row["label"] == "bad" if separated else i // 2 % 2 == 0
            row["logit_good"], row["logit_bad"] = "0.0", str((2.0 if high else -2.0) + 0.01 * i)
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(("test", "validation", "status"), [(True, False, "warning"), (True, True, "holds")])
def test_held_out_auc_far_above_validation_is_a_warning(test, validation, status, copy):
    """A held-out AUC far above the inner validation's is a warning, since the epoch was selected on the latter."""
    for path in copy.glob("fold*/validation.csv"):  # enough cases for a small standard error
        head, *rows = path.read_text().splitlines()
        path.write_text("\n".join([head, *rows * 8]) + "\n")
    write_separated(copy, "predictions", separated=test)
    write_separated(copy, "validation", separated=validation)
    result = auc_gap(RunFolder.open(copy))
    assert (result.check, result.status) == ("auc-gap", status)
    assert "mean AUC 1.000 on the held-out cases" in result.detail


def test_few_validation_cases_give_no_gap_warning(clean):
    """Two validation cases a fold say little about an AUC: the difference must exceed its standard error."""
    assert auc_gap(RunFolder.open(clean)).status in {"holds", "not checked"}


def test_patients_whose_ids_differ_in_case_and_blanks_are_one(clean, cohort, tmp_path):
    """`p001 ` and `P 001` are one patient, in the folds of a training and in the audit."""
    renamed = Path(shutil.copytree(cohort, tmp_path / "cohort"))
    rows = list(csv.DictReader(io.StringIO((renamed / "cohort.csv").read_text())))
    lines = ["case_id,patient_id,label"]
    for i, row in enumerate(rows):
        patient = row["patient_id"] if i % 4 < 2 else f"{row['patient_id'][0].lower()} {row['patient_id'][1:]}"
        lines.append(f"{row['case_id']},{patient},{row['label']}")
        record = renamed / row["case_id"] / "clinical.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"patient_id": patient}))
    (renamed / "cohort.csv").write_text("\n".join(lines) + "\n")
    run = train(renamed, tmp_path / "run")
    assert (run / "folds.json").read_bytes() == (clean / "folds.json").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        plant_shared_patient(patch)
        run = train(renamed, tmp_path / "leaking")
    assert "patients" in audit(run, renamed, "--no-model")[1]["leak"]
