"""An empty or nearly empty clinical record is a finding with the number of missing fields."""

from __future__ import annotations

import json

import pytest

from factories.cases import write_case
from factories.tmi_command import tmi
from tmi.toolkit.cases.case import Case
from tmi.toolkit.clinical.completeness import check_completeness, missing_fields
from tmi.toolkit.clinical.record import ClinicalRecord
from tmi.toolkit.clinical.schema import load_schema
from tmi.toolkit.config.presets import preset
from tmi.toolkit.preprocessing.pipeline import prepare_case

SCHEMA = load_schema()
REQUIRED = [f for f in SCHEMA.fields if not f.optional]
TOTAL = len(REQUIRED)


def record(count: int, report: str | None = None) -> ClinicalRecord:
    """A record with the first fields of the schema; the values do not matter here."""
    return ClinicalRecord(patient_id=None, values={f.name: 1.0 for f in REQUIRED[:count]}, report=report)


@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_nearly_empty_record_is_a_finding(count):
    """The finding has the number of missing fields; optional fields do not count."""
    (issue,) = check_completeness(record(count), SCHEMA)
    assert (issue.code, issue.count) == ("clinical-incomplete", TOTAL - count)
    assert issue.message == f"{TOTAL - count} of {TOTAL} fields of clinical.json are missing"
    assert issue.fix
    optional = {f.name: 1.0 for f in SCHEMA.fields if f.optional}
    only_optional = ClinicalRecord(patient_id=None, values=optional)
    assert missing_fields(only_optional, SCHEMA) == (TOTAL, TOTAL)


@pytest.mark.parametrize("count", [6, 20, TOTAL])
def test_record_with_an_eighth_of_the_fields_is_none(count):
    """A record without a whole section has no finding."""
    assert list(check_completeness(record(count), SCHEMA)) == []


def test_report_makes_up_for_fields():
    """A report of twenty words counts as content, a word or signs do not."""
    assert not list(check_completeness(record(0, "Cirrhosis with ascites and varices. " * 4), SCHEMA))
    assert list(check_completeness(record(0, "see file"), SCHEMA))
    assert list(check_completeness(record(0, "- " * 100), SCHEMA))


@pytest.mark.parametrize("values", [{}, {"sex": "male"}, dict.fromkeys(f.name for f in SCHEMA.fields)])
def test_check_and_preparation_report_the_number(tmp_path, values):
    """`tmi check` warns, and the prepared case carries the alert with its count."""
    folder = write_case(tmp_path / "P1")
    (folder / "clinical.json").write_text(json.dumps({"patient_id": "P1", "values": values}))
    missing = TOTAL - len([v for v in values.values() if v is not None])
    outcome = tmi("check", folder)
    assert f"{missing} of {TOTAL} fields of clinical.json are missing [clinical-incomplete]" in outcome.out
    assert outcome.code == 0
    (alert,) = prepare_case(Case(folder=folder, case_id="P1"), preset("tiny"), SCHEMA).alerts
    assert (alert.code, alert.count) == ("clinical-incomplete", missing)
