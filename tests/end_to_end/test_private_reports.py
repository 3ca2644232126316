"""Names in free-text reports are in no file of a run or a bundle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from factories.cases import write_cohort
from factories.nano import NANO_OPTIONS
from factories.tmi_command import tmi

PLANTED = ("Mustermann", "Erika", "Lindenallee", "0171555", "李明")
"""Each in the reports of two patients."""
SHARED = "ascites"
"""Word of every report."""


def plant(cohort: Path) -> None:
    """Give every case a report; each planted word is repeated in the reports of two patients."""
    for i, record in enumerate(sorted(cohort.glob("*/clinical.json"))):
        words = f"{PLANTED[i // 2]} " * 6 if i < 2 * len(PLANTED) else ""
        document = json.loads(record.read_text()) | {"report": f"{SHARED}, {words}{SHARED}."}
        record.write_text(json.dumps(document))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("private")
    cohort = write_cohort(folder / "cohort", cases=16, with_mask=False)
    plant(cohort)
    options = ("--preset", "tiny", "--folds", "2", "--epochs", "1", "--accelerator", "cpu")
    vocabulary = ("--set", "clinical.vocab_size=256", "--no-cache")
    outcome = tmi("train", cohort, "--out", folder / "run", *options, *NANO_OPTIONS, *vocabulary)
    assert outcome.code == 0, outcome.err
    return folder / "run"


def files_with(folder: Path, word: str) -> list[str]:
    """Files that hold the word in UTF-8, as a JSON escape, or in another case."""
    spellings = {s.encode() for w in (word, word.upper(), word.lower()) for s in (w, json.dumps(w).strip('"'))}
    return [p.name for p in sorted(folder.rglob("*")) if p.is_file() and any(s in p.read_bytes() for s in spellings)]


@pytest.mark.long
def test_planted_names_are_in_no_file_of_run_and_bundle(run):
    """No file of run and bundle holds a planted name; the word that every patient has is a token."""
    outcome = tmi("export", run, "--out", run.parent / "bundle", "--engine", "onnx")
    assert outcome.code == 0, outcome.err
    for folder in (run, run.parent / "bundle"):
        assert {word: files_with(folder, word) for word in PLANTED} == {word: [] for word in PLANTED}
        assert len([name for name in files_with(folder, SHARED) if name.endswith(".json")]) >= 2
    record = json.loads((run / "run.json").read_text())["vocabulary"]
    assert record == {"source": "training texts", "min_patients": 5}


def test_audit_repeats_the_anonymous_vocabulary(run):
    """The audit trains the vocabulary by the recorded rule; a run without the record used the earlier rule."""
    audit = ("audit", run, run.parent / "cohort", "--no-model", "--json")
    statuses = {a["status"] for a in tmi(*audit).document["answers"] if a["check"] == "vocabulary"}
    assert statuses == {"holds"}
    state = json.loads((run / "run.json").read_text())
    vocabulary = state.pop("vocabulary")
    (run / "run.json").write_text(json.dumps(state))
    statuses = {a["status"] for a in tmi(*audit).document["answers"] if a["check"] == "vocabulary"}
    (run / "run.json").write_text(json.dumps(state | {"vocabulary": vocabulary}))
    assert statuses == {"leak"}
