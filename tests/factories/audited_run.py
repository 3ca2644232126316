"""A small cohort with two cases a patient, runs on it, and `tmi audit` of them."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from factories.tmi_command import CommandResult, tmi
from tmi.training.loop import cross_validation

OPTIONS = ["--preset", "tiny", "--folds", "2", "--epochs", "3", "--accelerator", "cpu"]
SMALL = [
    "ct.shape_DHW=[8,16,16]",
    "clinical.vocab_size=200",
    "clinical.max_length=64",
    "network.ct_encoder.planes=[4,4,4,4]",
    "network.text_encoder.layers=1",
    "network.radiomics_encoder.hidden=8",
    "network.head.blocks=[1,1]",
]


def train(cohort: Path, out: Path, *settings: str) -> Path:
    assignments = [part for setting in (*SMALL, *settings) for part in ("--set", setting)]
    outcome = tmi("train", cohort, "--out", out, *OPTIONS, *assignments)
    assert outcome.code == 0, outcome.err
    return out


def audit(run: Path, cohort: Path | None, *more: str) -> tuple[CommandResult, dict[str, set[str]]]:
    """Run the command; return its result and the checks by status."""
    outcome = tmi("audit", run, *([] if cohort is None else [cohort]), "--json", *more, cwd=run)
    checks: dict[str, set[str]] = {}
    if outcome.out:
        for result in outcome.document["answers"]:
            checks.setdefault(result["status"], set()).add(result["check"])
    return outcome, checks


def two_cases_a_patient(cohort: Path) -> None:
    """Give cases i and i + 2 of every four, which have the same label, to one patient."""
    rows = list(csv.DictReader(io.StringIO((cohort / "cohort.csv").read_text())))
    lines = ["case_id,patient_id,label"]
    for i, row in enumerate(rows):
        patient = f"P{i // 4 * 2 + i % 2:03d}"
        lines.append(f"{row['case_id']},{patient},{row['label']}")
        record = cohort / row["case_id"] / "clinical.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"patient_id": patient}))
    (cohort / "cohort.csv").write_text("\n".join(lines) + "\n")


def plant_shared_patient(patch: pytest.MonkeyPatch) -> None:
    """Make every following training split by case instead of by patient."""
    original = cross_validation.make_folds
    patch.setattr(
        cross_validation,
        "make_folds",
        lambda cases, config: original([replace(c, patient_id=c.case_id) for c in cases], config),
    )
