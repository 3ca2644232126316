"""`tmi predict`: what stands on which stream, in which file, and the exit code."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from factories.paths import ROOT
from factories.tmi_command import tmi
from tmi.runtime.cli.tables.predictions import print_table
from tmi.runtime.serving.results import RESEARCH_USE, Notice, document_schema


@pytest.fixture
def ask(tiny_bundle):
    """`tmi predict` on the bundle, with one thread of the quick engine."""

    def run(*arguments, **named):
        return tmi("predict", *arguments, "--bundle", tiny_bundle, "--engine", "onnx", "--threads", 1, **named)

    return run


@pytest.fixture
def bad_case(tmp_path) -> Path:
    folder = tmp_path / "bad [case]"
    folder.mkdir()
    return folder


def test_json_is_one_document_of_the_declared_schema(ask, good_cases, bad_case):
    outcome = ask(good_cases[0], bad_case, good_cases[1], "--json")
    document = outcome.document
    jsonschema.validate(document, document_schema())
    assert document["schema"] == "tmi-prediction/1"
    assert [r["case_id"] for r in document["results"]] == ["P000", "bad [case]", "P001"]
    assert [r["status"] for r in document["results"]] == ["predicted", "refused", "predicted"]
    assert document["counts"] == {"predicted": 2, "refused": 1}
    assert outcome.code == 3
    assert "error: case bad [case]: " in outcome.err
    assert "[3/3] P001" in outcome.err


def test_the_schema_notices_a_missing_and_a_foreign_field(ask, good_cases):
    document = ask(good_cases[0], "--json").document
    for change in (lambda r: r.pop("spread"), lambda r: r.update(patient_name="x")):
        changed = json.loads(json.dumps(document))
        change(changed["results"][0])
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(changed, document_schema())


def test_the_table_names_case_decision_probability_engine_and_purpose(ask, good_cases, bad_case):
    document = ask(good_cases[0], "--json").document
    outcome = ask(good_cases[0], bad_case)
    (result,) = document["results"]
    row = next(line for line in outcome.out.splitlines() if "P000" in line)
    assert result["decision"] in row
    assert f"{result['probability']['bad']:.4f}" in row
    assert any("bad [case]" in line and "refused" in line for line in outcome.out.splitlines())
    assert f"bundle {document['bundle']['digest'][:16]}" in outcome.out
    assert "engine onnx (onnxruntime " in outcome.out
    assert RESEARCH_USE in outcome.out


def test_what_was_assumed_is_said_and_recorded(tiny_bundle, good_cases, tmp_path, monkeypatch):
    monkeypatch.setenv("TMI_BUNDLE", str(tiny_bundle))
    outcome = tmi("predict", good_cases[0], "--json", cwd=tmp_path)
    assert outcome.code == 0
    assert f"bundle {tiny_bundle} (from TMI_BUNDLE)" in outcome.err
    engine = outcome.document["engine"]
    assert engine["asked"] == "auto"
    assert re.search(rf"^engine {engine['name']} in \w+ \({re.escape(engine['reason'])}\)$", outcome.err, re.M)


def test_an_output_file_holds_the_document_and_is_not_overwritten(ask, good_cases, tmp_path):
    file = tmp_path / "answers.json"
    first = ask(good_cases[0], "--json", "-o", file)
    assert json.loads(file.read_text()) == first.document
    before = file.read_bytes()
    again = ask(good_cases[1], "-o", file)
    assert again.code == 2
    assert f"prediction file {file} exists" in again.err
    assert "--force" in again.err
    assert file.read_bytes() == before
    assert ask(good_cases[1], "-o", file, "--force").code == 0
    assert json.loads(file.read_text())["results"][0]["case_id"] == "P001"
    assert [p.name for p in tmp_path.iterdir()] == ["answers.json"]


def test_a_csv_file_has_one_row_a_case_with_full_precision(ask, good_cases, bad_case, tmp_path):
    file = tmp_path / "answers.csv"
    document = ask(good_cases[0], bad_case, "--json", "-o", file).document
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    assert [(r["case_id"], r["status"]) for r in rows] == [("P000", "predicted"), ("bad [case]", "refused")]
    result = document["results"][0]
    assert float(rows[0]["probability_bad"]) == result["probability"]["bad"]
    assert float(rows[0]["fold1_bad"]) == result["folds"][1]["probability"]["bad"]
    assert rows[1]["refusal"].startswith(document["results"][1]["code"])
    assert rows[1]["probability_bad"] == ""


@pytest.mark.parametrize("name", [".", "no_folder/answers.json"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(ask, good_cases, tmp_path, name):
    outcome = ask(good_cases[0], "-o", tmp_path / name)
    assert outcome.code == 2
    assert "cannot be written as a file" in outcome.err
    assert "engine" not in outcome.err


def test_a_cohort_folder_stands_for_its_cases_in_the_order_of_its_table(ask, good_cases, tmp_path):
    cohort = tmp_path / "cohort"
    for case in good_cases[:3]:
        shutil.copytree(case, cohort / case.name)
    (cohort / "cohort.csv").write_text("case_id,patient_id,label\nP002,a,bad\nP000,b,good\nP001,c,good\n")
    document = ask(cohort, "--batch", 2, "--json").document
    assert [r["case_id"] for r in document["results"]] == ["P002", "P000", "P001"]


def test_help_shows_an_example():
    outcome = tmi("predict", "--help")
    assert outcome.code == 0
    assert "tmi predict case_a/ case_b/" in outcome.out


def test_the_documented_document_is_of_the_schema():
    page = (ROOT / "docs" / "predict.md").read_text()
    (example,) = re.findall(r"```json\n(.*?)```", page, flags=re.DOTALL)
    document = json.loads(re.sub(r"<SHA-256[^>]*>", "0" * 64, example))
    jsonschema.validate(document, document_schema())
    seconds = document["results"][0]["seconds"]
    assert sum(v for stage, v in seconds.items() if stage != "total") == pytest.approx(seconds["total"])


def test_the_table_says_each_kind_of_note_once(ask, good_cases):
    outcome = ask(*good_cases[:3])
    notes = [line for line in outcome.out.splitlines() if line.startswith("  radiomics-clipped: ")]
    document = ask(*good_cases[:3], "--json").document
    counts = [n["count"] for r in document["results"] for n in r["warnings"] if n["code"] == "radiomics-clipped"]
    assert len(notes) == 1
    assert notes[0].startswith("  radiomics-clipped: " + ", ".join(f"P00{i} {n}" for i, n in enumerate(counts)))
    assert "fold models trained on synthetic cases" in outcome.out.splitlines()[0]
    assert sum(line.startswith("  synthetic-model: all cases: ") for line in outcome.out.splitlines()) == 1


def test_a_path_that_cannot_be_looked_at_stops_no_other_case(ask, good_cases):
    outcome = ask("x" * 300, good_cases[0], "--json")
    assert outcome.code == 3
    assert [r["status"] for r in outcome.document["results"]] == ["refused", "predicted"]
    assert f"error: case {'x' * 300}: the case folder is not there [case-missing]" in outcome.err


def test_two_notices_of_one_kind_are_named_once_in_the_row(predictor, good_cases, capsys):
    (answer,) = predictor.predict([good_cases[0]])
    notices = tuple(Notice(code="input", message=message) for message in ("the first", "the second"))
    print_table([replace(answer, warnings=notices)], bundle=predictor.bundle, engine=predictor.engine_record)
    told = capsys.readouterr().out
    row = next(line for line in told.splitlines() if answer.decision in line and "P000" in line)
    assert row.count("input") == 1
    assert "input: P000: the first" in told
    assert "input: P000: the second" in told
