"""The text that the encoder reads: every field in the schema's order, missing ones said to be missing."""

from __future__ import annotations

import pytest

from tmi.toolkit.clinical.record import ClinicalRecord
from tmi.toolkit.clinical.rendering import RENDERING_VERSIONS, render
from tmi.toolkit.clinical.schema import load_schema

SCHEMA = load_schema()


def text(rendering: str, report: str | None = None, **values: float | str | None) -> str:
    whole = {f.name: values.get(f.name) for f in SCHEMA.fields}
    return render(ClinicalRecord(patient_id=None, values=whole, report=report), SCHEMA, rendering)


@pytest.mark.parametrize("rendering", RENDERING_VERSIONS)
def test_every_field_is_named_in_the_schemas_order_and_missing_ones_are_said_to_be_missing(rendering):
    rendered = text(rendering)
    labels = [f.label for f in SCHEMA.fields if not f.optional]
    places = [rendered.index(f"{label}: missing") for label in labels]
    assert places == sorted(places)
    assert rendered.count("missing") == 42
    assert not any(f"{f.label}:" in rendered for f in SCHEMA.fields if f.optional)


@pytest.mark.parametrize("rendering", RENDERING_VERSIONS)
def test_optional_fields_are_there_when_they_are_known(rendering):
    rendered = text(rendering, age=61.0, aetiology="alcohol")
    assert "Age: 61" in rendered
    assert "Aetiology: alcohol" in rendered
    assert "Weight" not in rendered


def test_values_gives_a_sentence_a_field_with_value_and_unit():
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
def test_flags_follow_the_reference_range_of_the_patients_sex(sex, value, flag):
    assert f"Haemoglobin: {value:g} g/L ({flag})." in text("flags", sex=sex, haemoglobin=value)


def test_flags_need_the_sex_only_where_the_ranges_differ():
    rendered = text("flags", haemoglobin=120.0, albumin=38.0, sat_area=200.0)
    assert "Haemoglobin: 120 g/L." in rendered
    assert "Albumin: 38 g/L (low)." in rendered
    assert "Subcutaneous fat area: 200 cm2." in rendered


def test_pairs_are_name_and_value_joined_by_spaces_as_in_the_released_code():
    rendered = text("pairs", sex="female", height=162.0, albumin=38.0)
    assert rendered.startswith("Sex: female Height: 162 Body mass index: missing White blood cells: missing ")
    assert " Albumin: 38 Total bilirubin: missing " in rendered
    assert "." not in rendered


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.25, "0.25"), (9999.4, "9999"), (9999.7, "10000"), (10_000.0, "10000"), (12_345.6, "12346"), (7500.0, "7500")],
)
def test_no_number_is_written_with_an_exponent(value, shown):
    assert f"Cholinesterase: {shown} U/L." in text("values", cholinesterase=value)


@pytest.mark.parametrize("rendering", RENDERING_VERSIONS)
def test_a_report_is_appended_as_it_is(rendering):
    alone = text(rendering)
    assert text(rendering, report="  Ascites, grade 2.\n") == f"{alone} Ascites, grade 2."
    assert text(rendering, report=" \n ") == alone
