"""Rendered text: fields in the schema's order, missing fields, flags, number format and the report."""

from __future__ import annotations

import pytest

from tmi.toolkit.clinical.record import ClinicalRecord
from tmi.toolkit.clinical.rendering import RENDERING_VERSIONS, render
from tmi.toolkit.clinical.schema import load_schema

SCHEMA = load_schema()


def text(rendering: str, report: str | None = None, **values: float | str | None) -> str:
    complete = {f.name: values.get(f.name) for f in SCHEMA.fields}
    return render(ClinicalRecord(patient_id=None, values=complete, report=report), SCHEMA, rendering)


LONG_FORMS = [name for name in RENDERING_VERSIONS if name != "compact"]


@pytest.mark.parametrize("rendering", LONG_FORMS)
def test_missing_fields_are_rendered_in_schema_order(rendering):
    """Every field that is not optional is rendered in the schema's order, as missing if it is missing."""
    rendered = text(rendering)
    labels = [f.label for f in SCHEMA.fields if not f.optional]
    positions = [rendered.index(f"{label}: missing") for label in labels]
    assert positions == sorted(positions)
    assert rendered.count("missing") == 42
    assert not any(f"{f.label}:" in rendered for f in SCHEMA.fields if f.optional)


@pytest.mark.parametrize("rendering", LONG_FORMS)
def test_optional_fields_are_rendered_if_present(rendering):
    """An optional field is rendered only if it is present."""
    rendered = text(rendering, age=61.0, aetiology="alcohol")
    assert "Age: 61" in rendered
    assert "Aetiology: alcohol" in rendered
    assert "Weight" not in rendered


def test_values_renders_sentences_with_units():
    """The rendering `values` has one sentence for each field, with value and unit."""
    rendered = text("values", sex="female", albumin=38.0, total_bilirubin=20.5248)
    assert rendered.startswith("Sex: female. Height: missing. Body mass index: missing. White blood cells: missing.")
    assert "Albumin: 38 g/L. Total bilirubin: 20.52 umol/L. Direct bilirubin: missing." in rendered
    assert "low" not in rendered.split()


@pytest.mark.parametrize(
    ("sex", "value", "flag"),
    [
        ("female", 114.0, "low"),
        ("female", 115.0, "normal"),
        ("female", 150.0, "normal"),
        ("female", 151.0, "high"),
        ("male", 129.0, "low"),
        ("male", 151.0, "normal"),
        ("male", 176.0, "high"),
    ],
)
def test_flags_follow_reference_range_of_sex(sex, value, flag):
    """The flag uses the reference range of the patient's sex, ends included."""
    assert f"Haemoglobin: {value:g} g/L ({flag})." in text("flags", sex=sex, haemoglobin=value)


def test_flags_need_sex_only_for_differing_ranges():
    """Without the sex, a flag is given only if both sexes have the same range."""
    rendered = text("flags", haemoglobin=120.0, albumin=38.0, sat_area=200.0)
    assert "Haemoglobin: 120 g/L." in rendered
    assert "Albumin: 38 g/L (low)." in rendered
    assert "Subcutaneous fat area: 200 cm2." in rendered


def test_compact_renders_short_names_and_values():
    """The rendering `compact` has short names, no units, and omits missing optional fields only."""
    rendered = text("compact", sex="female", age=61.0, albumin=38.0, wbc=4.1, vat_area_fraction=12.5)
    assert rendered.startswith("Sex female Age 61 ALB 38 TBIL missing DBIL missing PLT missing ")
    assert " WBC 4.1 " in rendered
    assert " VAT area % 12.5 " in rendered
    assert rendered.endswith("ST area % missing ST volume % missing")
    assert rendered.count("missing") == 42 - 4
    assert "Cause" not in rendered
    assert "Weight" not in rendered


def test_pairs_render_names_and_values():
    """The rendering `pairs` joins names and values by spaces, as in the released code."""
    rendered = text("pairs", sex="female", height=162.0, albumin=38.0)
    assert rendered.startswith("Sex: female Height: 162 Body mass index: missing White blood cells: missing ")
    assert " Albumin: 38 Total bilirubin: missing " in rendered
    assert "." not in rendered


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.25, "0.25"), (9999.4, "9999"), (9999.7, "10000"), (10_000.0, "10000"), (12_345.6, "12346"), (7500.0, "7500")],
)
def test_numbers_have_no_exponent(value, shown):
    """Numbers are written with four significant digits and without an exponent."""
    assert f"Cholinesterase: {shown} U/L." in text("values", cholinesterase=value)


@pytest.mark.parametrize("rendering", RENDERING_VERSIONS)
def test_report_is_appended_unchanged(rendering):
    """The report is appended without surrounding whitespace; a blank report adds nothing."""
    without_report = text(rendering)
    assert text(rendering, report="  Ascites, grade 2.\n") == f"{without_report} Ascites, grade 2."
    assert text(rendering, report=" \n ") == without_report
