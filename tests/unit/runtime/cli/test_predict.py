"""`tmi predict`: output streams, output files and exit codes."""

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
from tmi.runtime.serving.results import RESEARCH_USE, Issue, document_schema


@pytest.fixture
def predict(tiny_bundle):
    """`tmi predict` on the bundle with one thread of ONNX Runtime."""

    def run(*arguments, **named):
        return tmi("predict", *arguments, "--bundle", tiny_bundle, "--engine", "onnx", "--threads", 1, **named)

    return run


@pytest.fixture
def bad_case(tmp_path) -> Path:
    folder = tmp_path / "bad [case]"
    folder.mkdir()
    return folder


def test_json_satisfies_the_declared_schema(predict, good_cases, bad_case):
    """`--json` prints one document of the declared schema, rejected cases included."""
    outcome = predict(good_cases[0], bad_case, good_cases[1], "--json")
    document = outcome.document
    jsonschema.validate(document, document_schema())
    assert document["schema"] == "tmi-prediction/3"
    assert [r["case_id"] for r in document["results"]] == ["P000", "bad [case]", "P001"]
    assert [r["status"] for r in document["results"]] == ["predicted", "refused", "predicted"]
    assert document["counts"] == {"predicted": 2, "refused": 1}
    assert outcome.code == 3
    assert "error: case bad [case]: " in outcome.err
    assert "[3/3] P001" in outcome.err


def test_schema_rejects_missing_and_unknown_fields(predict, good_cases):
    """The JSON Schema rejects a missing and an unknown field."""
    document = predict(good_cases[0], "--json").document
    for change in (lambda r: r.pop("spread"), lambda r: r.update(patient_name="x")):
        changed = json.loads(json.dumps(document))
        change(changed["results"][0])
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(changed, document_schema())


def test_table_shows_results_and_provenance(predict, good_cases, bad_case):
    """The table shows case, decision, probability, rejected cases, engine, bundle and intended use."""
    document = predict(good_cases[0], "--json").document
    outcome = predict(good_cases[0], bad_case)
    (result,) = document["results"]
    row = next(line for line in outcome.out.splitlines() if line.startswith("│ P000"))
    assert result["decision"] in row
    assert f"{result['probability']['bad']:.4f}" in row
    assert any("bad [case]" in line and "rejected" in line for line in outcome.out.splitlines())
    assert f"bundle {document['bundle']['digest'][:16]}" in outcome.out
    assert "engine onnx (onnxruntime " in outcome.out
    assert RESEARCH_USE in outcome.out


def test_defaults_are_printed_and_recorded(tiny_bundle, good_cases, tmp_path, monkeypatch):
    """The default bundle and engine are named on standard error and in the document."""
    monkeypatch.setenv("TMI_BUNDLE", str(tiny_bundle))
    outcome = tmi("predict", good_cases[0], "--json", cwd=tmp_path)
    assert outcome.code == 0
    assert f"bundle {tiny_bundle} (from TMI_BUNDLE)" in outcome.err
    engine = outcome.document["engine"]
    assert engine["asked"] == "auto"
    assert re.search(rf"^engine {engine['name']} in \w+ \({re.escape(engine['reason'])}\)$", outcome.err, re.M)


def test_output_file_is_not_overwritten(predict, good_cases, tmp_path):
    """The output file holds the document and is replaced only with `--force`."""
    file = tmp_path / "predictions.json"
    first = predict(good_cases[0], "--json", "-o", file)
    assert json.loads(file.read_text()) == first.document
    before = file.read_bytes()
    again = predict(good_cases[1], "-o", file)
    assert again.code == 2
    assert f"prediction file {file} exists" in again.err
    assert "--force" in again.err
    assert file.read_bytes() == before
    assert predict(good_cases[1], "-o", file, "--force").code == 0
    assert json.loads(file.read_text())["results"][0]["case_id"] == "P001"
    assert [p.name for p in tmp_path.iterdir()] == ["predictions.json"]


def test_csv_has_one_row_for_each_case(predict, good_cases, bad_case, tmp_path):
    """The CSV has one row for each case, with full precision."""
    file = tmp_path / "predictions.csv"
    document = predict(good_cases[0], bad_case, "--json", "-o", file).document
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    assert [(r["case_id"], r["status"]) for r in rows] == [("P000", "predicted"), ("bad [case]", "refused")]
    result = document["results"][0]
    assert float(rows[0]["probability_bad"]) == result["probability"]["bad"]
    assert float(rows[0]["fold1_bad"]) == result["folds"][1]["probability"]["bad"]
    assert rows[1]["refusal"].startswith(document["results"][1]["code"])
    assert rows[1]["probability_bad"] == ""


@pytest.mark.parametrize("name", [".", "no_folder/predictions.json"])
def test_unwritable_output_fails_before_predicting(predict, good_cases, tmp_path, name):
    """An output path that cannot be written fails before the bundle is opened."""
    outcome = predict(good_cases[0], "-o", tmp_path / name)
    assert outcome.code == 2
    assert "cannot be written as a file" in outcome.err
    assert "engine" not in outcome.err


def test_cohort_folder_keeps_the_table_order(predict, good_cases, tmp_path):
    """A cohort folder is expanded to its cases in the order of its table."""
    cohort = tmp_path / "cohort"
    for case in good_cases[:3]:
        shutil.copytree(case, cohort / case.name)
    (cohort / "cohort.csv").write_text("case_id,patient_id,label\nP002,a,bad\nP000,b,good\nP001,c,good\n")
    document = predict(cohort, "--batch", 2, "--json").document
    assert [r["case_id"] for r in document["results"]] == ["P002", "P000", "P001"]


def test_help_shows_an_example():
    """The help text holds an example."""
    outcome = tmi("predict", "--help")
    assert outcome.code == 0
    assert "tmi predict case_a/ case_b/" in outcome.out


def test_documented_example_satisfies_the_schema():
    """The example in `docs/predict.md` satisfies the schema, and its stages add up."""
    page = (ROOT / "docs" / "predict.md").read_text()
    (example,) = re.findall(r"```json\n(.*?)```", page, flags=re.DOTALL)
    document = json.loads(re.sub(r"<SHA-256[^>]*>", "0" * 64, example))
    jsonschema.validate(document, document_schema())
    seconds = document["results"][0]["seconds"]
    assert sum(v for stage, v in seconds.items() if stage != "total") == pytest.approx(seconds["total"])


def test_table_groups_notices_by_kind(predict, good_cases):
    """Below the table each kind of notice has one line for all cases."""
    outcome = predict(*good_cases[:3])
    notes = [line for line in outcome.out.splitlines() if line.startswith("  radiomics-clipped: ")]
    document = predict(*good_cases[:3], "--json").document
    counts = [n["count"] for r in document["results"] for n in r["warnings"] if n["code"] == "radiomics-clipped"]
    assert len(notes) == 1
    assert notes[0].startswith("  radiomics-clipped: " + ", ".join(f"P00{i} {n}" for i, n in enumerate(counts)))
    (title,) = [line for line in outcome.out.splitlines() if line.startswith("Prognosis: ")]
    assert "fold models trained on synthetic cases" in title
    assert sum(line.startswith("  synthetic-model: all cases: ") for line in outcome.out.splitlines()) == 1


def test_invalid_path_rejects_one_case(predict, good_cases):
    """A path that the operating system rejects concerns its own case alone."""
    outcome = predict("x" * 300, good_cases[0], "--json")
    assert outcome.code == 3
    assert [r["status"] for r in outcome.document["results"]] == ["refused", "predicted"]
    assert f"error: case {'x' * 300}: the case folder does not exist [case-missing]" in outcome.err


def test_row_names_a_kind_of_notice_once(predictor, good_cases, capsys):
    """Two notices of one kind appear once in the row and both below the table."""
    (result,) = predictor.predict([good_cases[0]])
    notices = tuple(Issue.of("clinical-unit-doubt", message, "check") for message in ("the first", "the second"))
    print_table([replace(result, warnings=notices)], bundle=predictor.bundle, engine=predictor.engine_record)
    output = capsys.readouterr().out
    row = next(line for line in output.splitlines() if result.decision in line and "P000" in line)
    assert row.count("clinical-unit-doubt") == 1
    assert "clinical-unit-doubt: P000: the first" in output
    assert "clinical-unit-doubt: P000: the second" in output
