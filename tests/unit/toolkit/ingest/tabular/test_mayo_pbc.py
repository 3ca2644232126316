"""Import of the Mayo PBC trial (418 patients) with the mappings of docs/examples."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from factories.paths import ROOT
from tmi.toolkit.cases.case import open_case, open_cohort
from tmi.toolkit.clinical.record import read_clinical
from tmi.toolkit.clinical.rendering import render
from tmi.toolkit.clinical.schema import load_schema
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.ingest.tabular.cohort_importer import import_table
from tmi.toolkit.ingest.tabular.report import TableReport

EXAMPLES = ROOT / "docs" / "examples"


@pytest.fixture(scope="module")
def pbc(shared_data) -> Path:
    return shared_data / "mayo-pbc" / "pbc.csv"


@pytest.fixture(scope="module")
def imported(pbc, tmp_path_factory) -> dict[str, TableReport]:
    """Import of the trial with each example mapping."""
    folder = tmp_path_factory.mktemp("pbc")
    return {
        name: import_table(pbc, EXAMPLES / f"mayo-pbc-{name}.yaml", folder / name)
        for name in ("mapping", "records", "extended")
    }


def test_every_patient_is_imported_or_excluded(imported):
    """417 patients are imported, one is excluded with its reason."""
    report = imported["mapping"]
    assert report.counts == {"imported": 417, "flawed": 0, "refused": 0, "excluded": 1}
    warnings = {reason: count for reason, count in report.reasons.items() if reason.startswith("warning: ")}
    assert {reason: count for reason, count in report.reasons.items() if reason not in warnings} == {
        "excluded: censored within 730 days, so the outcome at two years is not known [no-label]": 1
    }
    assert all(reason.endswith("[clinical-incomplete]") for reason in warnings)
    assert "418 rows: 417 cases" in "\n".join(report.summary())
    cohort = open_cohort(report.out)
    assert Counter(c.label for c in cohort.cases) == {1: 52, 0: 365}
    assert imported["records"].counts["imported"] == 418
    assert not (imported["records"].out / "cohort.csv").exists()


def test_labels_follow_status_and_time(imported, pbc):
    """Labels equal the two-year outcome computed from status and time."""
    labels = {c.case_id: c.label for c in open_cohort(imported["mapping"].out).cases}
    with pbc.open(newline="") as stream:
        for row in csv.DictReader(stream):
            time, event = int(row["time"]), row["status"] in ("1", "2")
            expected = 0 if time > 730 else 1 if event else None
            assert labels.get(f"pbc-{row['id']}") == expected, row["id"]


def test_all_1033_missing_cells_are_counted(imported, pbc):
    """The report counts every missing cell, by column and by use."""
    with pbc.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    mapped = {"bili", "chol", "albumin", "alk.phos", "ast", "trig", "platelet", "age", "sex", "id", "status", "time"}
    missing = Counter(column for row in rows for column, cell in row.items() if cell == "")
    report = imported["mapping"]
    assert sum(missing.values()) == 1033
    assert report.missing == missing
    assert report.missing_cells == {"total": 1033, "mapped": 493, "unmapped": 540}
    assert sum(n for column, n in missing.items() if column in mapped) == 493
    assert imported["extended"].missing_cells == {"total": 1033, "mapped": 715, "unmapped": 318}


def test_value_is_missing_if_and_only_if_cell_is(imported, pbc):
    """A value is missing exactly where the cell is empty."""
    schema, out = load_schema(), imported["records"].out
    names = {"total_bilirubin": "bili", "cholesterol": "chol", "albumin": "albumin", "alp": "alk.phos", "ast": "ast",
             "triglycerides": "trig", "platelets": "platelet", "age": "age", "sex": "sex"}  # fmt: skip
    with pbc.open(newline="") as stream:
        for row in csv.DictReader(stream):
            values = read_clinical(open_case(out / f"pbc-{row['id']}"), schema).values
            assert {n: values[n] is None for n in names} == {n: row[c] == "" for n, c in names.items()}


@pytest.mark.parametrize(
    ("patient", "expected"),
    [
        (
            1,
            {"sex": "female", "age": 58.77, "total_bilirubin": 248.0, "albumin": 26.0, "cholesterol": 6.75,
             "alp": 1718.0, "ast": 137.95, "triglycerides": 1.942, "platelets": 190.0, "height": None},
        ),
        (3, {"sex": "male", "age": 70.07, "total_bilirubin": 23.95, "albumin": 34.8, "cholesterol": 4.551}),
        (6, {"platelets": None, "total_bilirubin": 13.68, "albumin": 39.8, "triglycerides": 0.7113}),
        (418, {"cholesterol": None, "alp": None, "ast": None, "triglycerides": None, "albumin": 32.9}),
    ],
)  # fmt: skip
def test_values_are_converted_to_schema_units(imported, patient, expected):
    """Values of four patients equal conversions done by hand."""
    record = read_clinical(open_case(imported["records"].out / f"pbc-{patient}"), load_schema())
    for name, value in expected.items():
        assert record.values[name] == (pytest.approx(value, rel=1e-3) if isinstance(value, float) else value), name
    assert record.values["aetiology"] == "primary biliary cholangitis"


def test_extended_schema_accepts_further_columns(imported):
    """Fields of an extended schema are imported and rendered; the liver schema rejects them."""
    schema = load_schema(EXAMPLES / "pbc-schema.json")
    case = open_case(imported["extended"].out / "pbc-1")
    text = render(read_clinical(case, schema), schema, "flags")
    for text_part in ("Urine copper: 156 ug/day (high).", "Ascites: yes.", "Oedema: despite diuretics.", "stage: 4."):
        assert text_part in text
    assert "fat" not in text
    with pytest.raises(InputRejectedError, match="the schema has no field 'copper'"):
        read_clinical(case, load_schema())
