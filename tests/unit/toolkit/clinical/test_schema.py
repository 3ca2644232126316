"""Clinical schema: packaged fields, unit conversion, extension by a user's file, and rejected schemas."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from factories.paths import ROOT
from tmi.toolkit.cases.case import Case
from tmi.toolkit.clinical.record import ClinicalRecord, read_clinical
from tmi.toolkit.clinical.rendering import RENDERING_VERSIONS, render
from tmi.toolkit.clinical.schema import (
    Conversion,
    Field,
    Schema,
    accepted_unit,
    convert,
    load_schema,
    parse_schema,
    store_schema,
    stored_schema,
)
from tmi.toolkit.config.schema import ClinicalConfig
from tmi.toolkit.errors import DamagedError, InputRejectedError, UsageError
from tmi.toolkit.storage.hashing import sha256_bytes, sha256_file

DOCUMENT = ROOT / "docs" / "clinical.md"
FIELD = {"name": "inr", "label": "INR", "section": "blood", "unit": "", "plausible": [0.5, 15]}


def extension(**changes: Any) -> dict[str, Any]:
    return {"schema": "tmi-clinical-schema/1", "extends": "liver", "name": "x", "version": "1", **changes}


def record(schema: Schema, **values: Any) -> ClinicalRecord:
    return ClinicalRecord(patient_id=None, values={f.name: values.get(f.name) for f in schema.fields})


def test_packaged_schema_has_paper_fields():
    """The liver schema has the paper's 3 + 23 + 16 fields, and optional ones."""
    fields = load_schema().fields
    assert Counter(f.section for f in fields if not f.optional) == {"basic": 3, "blood": 23, "fat analysis": 16}
    assert Counter(f.section for f in fields if f.optional) == {"basic": 3, "liver disease": 8}


@pytest.mark.parametrize("field", [f for f in load_schema().fields if f.unit is not None], ids=lambda f: f.name)
def test_reference_range_is_plausible(field):
    """Every reference range is inside the plausible range, and only accepted units are converted."""
    low, high = field.plausible
    for reference in field.reference.values():
        assert low <= reference[0] < reference[1] <= high
    assert convert(field, 1.5, field.unit) == convert(field, 1.5, None) == 1.5
    assert convert(field, 1.5, "furlong") is None


@pytest.mark.parametrize(
    ("name", "value", "unit", "expected"),
    [
        ("total_bilirubin", 1.0, "mg/dL", 17.104), ("creatinine", 1.0, "mg/dL", 88.42), ("albumin", 3.8, "g/dL", 38.0),
        ("cholesterol", 200, "mg/dL", 5.172), ("triglycerides", 150, "mg/dL", 1.6935), ("urea", 14, "mg/dL BUN", 4.998),
        ("height", 1.75, "m", 175.0), ("weight", 150, "lb", 68.039), ("haemoglobin", 14, "g/dL", 140.0),
        ("wbc", 6.1, "10^3/uL", 6.1), ("cholinesterase", 7.5, "kU/L", 7500.0), ("sat_area", 12000, "mm2", 120.0),
        ("vat_volume_fraction", 0.35, "fraction", 35.0),
    ],
)  # fmt: skip
def test_unit_conversion_matches_hand_computed_values(name, value, unit, expected):
    """Conversions equal hand-computed values."""
    assert convert(load_schema().by_name[name], value, unit) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "as_if", "normal"),
    [("creatinine", "mg/dL", 0.9), ("albumin", "g/dL", 4.4),
     ("haemoglobin", "g/dL", 14.0), ("total_protein", "g/dL", 7.2), ("cholesterol", "mg/dL", 190.0),
     ("triglycerides", "mg/dL", 110.0), ("height", "m", 1.7), ("cholinesterase", "kU/L", 8.0)],
)  # fmt: skip
def test_healthy_value_in_wrong_unit_is_detected(tmp_path, name, as_if, normal):
    """A healthy value without its unit is rejected with the suspected unit, and accepted with it."""
    schema = load_schema()
    (tmp_path / "clinical.json").write_text(json.dumps({"values": {name: normal}}))
    case = Case(folder=tmp_path, case_id="P1")
    with pytest.raises(InputRejectedError, match=f"{name} is implausible in .* and looks like {re.escape(as_if)}"):
        read_clinical(case, schema)
    (tmp_path / "clinical.json").write_text(json.dumps({"values": {name: {"value": normal, "unit": as_if}}}))
    assert read_clinical(case, schema).values[name] is not None


def test_extension_adds_replaces_and_omits_fields(tmp_path):
    """An extension adds, replaces and omits fields and keeps the fields grouped by section."""
    (tmp_path / "s.json").write_text(
        json.dumps(
            extension(
                sections=["examination"],
                fields=[
                    {"name": "ascites", "label": "Ascites", "section": "examination", "choices": ["no", "yes"]},
                    FIELD,
                    {"name": "albumin", "label": "Serum albumin", "section": "blood", "unit": "g/dL"},
                ],
                without=["hdl"],
            )
        )
    )
    schema, liver = load_schema(tmp_path / "s.json"), load_schema()
    assert schema.sections == (*liver.sections, "examination")
    assert [f.section for f in schema.fields] == sorted((f.section for f in schema.fields), key=schema.sections.index)
    assert set(schema.by_name) == (set(liver.by_name) | {"inr", "ascites"}) - {"hdl"}
    assert schema.by_name["albumin"].unit == "g/dL"
    assert [f.name for f in schema.fields if f.section == "blood"][-1] == "inr"
    assert schema.digest != liver.digest


def test_stored_schema_is_resolved(tmp_path):
    """A stored schema is resolved, its digest is that of the file, and a malformed file is a DamagedError."""
    schema = parse_schema(extension(fields=[FIELD]), where="x")
    store_schema(tmp_path, schema)
    assert stored_schema(tmp_path, kind="run") == schema
    assert sha256_file(tmp_path / "clinical_schema.json") == schema.digest
    assert "extends" not in (tmp_path / "clinical_schema.json").read_text()
    for text in ("{", "[]", '{"schema": "tmi-clinical-schema/1"}', json.dumps(extension(fields=[FIELD]))):
        (tmp_path / "clinical_schema.json").write_text(text)
        with pytest.raises(DamagedError, match=r"clinical_schema\.json"):
            stored_schema(tmp_path, kind="run")


MISTAKES = {
    "no object": ([], "is not a clinical schema"),
    "another schema id": (extension(schema="tmi-clinical-schema/2"), "clinical schema 'tmi-clinical-schema/2'"),
    "an unknown base": (extension(extends="kidney"), "no schema 'kidney' to extend"),
    "an unknown key": (extension(colour="red"), "unknown key 'colour'"),
    "omitting an unknown field": (extension(without=["gfr"]), "without is not a list of fields"),
    "fields are no list": (extension(fields={"inr": FIELD}), "fields is not a list"),
    "sections are no list": (extension(sections=3), "sections is not a list"),
    "an unknown section": (extension(fields=[{**FIELD, "section": "urine"}]), "unknown section urine"),
    "a section twice": (extension(sections=["blood"]), "are not grouped by section"),
    "a field twice": (extension(fields=[FIELD, FIELD]), "duplicate field inr"),
    "a name with blanks": (extension(fields=[{**FIELD, "name": "the inr"}]), "its name is not a valid field name"),
    "an empty label": (extension(fields=[{**FIELD, "label": " "}]), "its label is empty"),
    "neither unit nor choices": (
        extension(fields=[{"name": "a", "label": "A", "section": "blood"}]), "either a unit or choices"
    ),
    "both": (extension(fields=[{**FIELD, "choices": ["a"]}]), "either a unit or choices"),
    "a choice twice": (
        extension(fields=[{"name": "a", "label": "A", "section": "blood", "choices": ["x", "x"]}]), "a choice is empty"
    ),
    "a reversed range": (extension(fields=[{**FIELD, "plausible": [15, 0.5]}]), "lower end is not below"),
    "a reference of another sex": (extension(fields=[{**FIELD, "reference": {"men": [1, 2]}}]), "unknown sex"),
    "its own unit as another": (
        extension(fields=[{**FIELD, "unit": "s", "accepted_units": {"s": {"factor": 2}}}]), "is its own unit"
    ),
    "a factor of 0": (
        extension(fields=[{**FIELD, "accepted_units": {"%": {"factor": 0}}}]), "has the factor 0"
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_schema_mistakes_are_reported(tmp_path, mistake):
    """A mistake in a schema is a usage error with its cause and a fix."""
    data, message = MISTAKES[mistake]
    (tmp_path / "s.json").write_text(json.dumps(data))
    with pytest.raises(UsageError) as error:
        load_schema(tmp_path / "s.json")
    assert message in str(error.value)
    assert error.value.fix


@pytest.mark.parametrize("content", [None, "{", "\xff", "[" * 100_000])
def test_unreadable_schema_is_usage_error(tmp_path, content):
    """A missing or invalid JSON file is a usage error."""
    if content is not None:
        (tmp_path / "s.json").write_text(content, encoding="latin-1")
    with pytest.raises(UsageError, match="cannot be read as JSON"):
        load_schema(tmp_path / "s.json")


def test_missing_optional_field_is_omitted():
    """A missing field is rendered as missing, and a missing optional field is omitted."""
    schema = load_schema()
    text = render(record(schema), schema, "values")
    for field in schema.fields:
        assert (f"{field.label}: missing." in text) is not field.optional


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"albumin": 38.0, "sex": "female"}, "Albumin: 38 g/L (low)."),
        ({"albumin": 42.0, "sex": "male"}, "Albumin: 42 g/L (normal)."),
        ({"albumin": 42.0}, "Albumin: 42 g/L (normal)."),
        ({"creatinine": 100.0, "sex": "female"}, "Creatinine: 100 umol/L (high)."),
        ({"creatinine": 100.0, "sex": "male"}, "Creatinine: 100 umol/L (normal)."),
        ({"creatinine": 100.0}, "Creatinine: 100 umol/L."),
        ({"sat_area": 150.0, "sex": "male"}, "Subcutaneous fat area: 150 cm2."),
        ({"creatinine": None, "sex": "male"}, "Creatinine: missing."),
        ({"inr": 2.5}, "INR: 2.5 (high)."),
        ({"inr": 1.0, "sex": "male"}, "INR: 1 (normal)."),
    ],
)
def test_flags_and_values_sentences(values, sentence):
    """The sentence of `flags` has the flag of the value, and that of `values` is the same without it."""
    schema = parse_schema(extension(fields=[{**FIELD, "reference": {"all": [0.8, 1.2]}}]), where="x")
    text = render(record(schema, **values), schema, "flags")
    assert sentence in text
    assert sentence.partition(" (")[0].rstrip(".") in render(record(schema, **values), schema, "values")


def test_report_ends_text_unchanged():
    """The report is the end of the text, with its line breaks."""
    schema = load_schema()
    report = "  Cirrhosis, Child-Pugh B.\nNo varices.  "
    with_report = ClinicalRecord(patient_id=None, values=record(schema).values, report=report)
    assert render(with_report, schema, "values").endswith(". Cirrhosis, Child-Pugh B.\nNo varices.")


def test_schema_without_short_names_keeps_its_digest(tmp_path):
    """The content of a schema of an earlier version, which has no short names, is written and digested as before."""
    packaged = load_schema()
    old = Schema(
        schema=packaged.schema,
        name=packaged.name,
        version=packaged.version,
        sections=packaged.sections,
        fields=tuple(replace(field, short=None) for field in packaged.fields),
    )
    store_schema(tmp_path, old)
    text = (tmp_path / "clinical_schema.json").read_text()
    assert "short" not in text
    assert "importance" not in text
    assert sha256_file(tmp_path / "clinical_schema.json") == old.digest
    assert stored_schema(tmp_path, kind="run") == old
    store_schema(tmp_path, packaged)
    assert sha256_file(tmp_path / "clinical_schema.json") == packaged.digest != old.digest


@pytest.mark.parametrize("importance", [["albumin", "albumin"], ["unknown"]])
def test_importance_names_each_field_once(importance):
    """A list of importance with an unknown or a repeated field is wrong usage."""
    with pytest.raises(UsageError, match="importance names"):
        parse_schema(extension(importance=importance), where="x")


def test_every_rendering_has_version():
    """Every rendering that a config accepts has a version."""
    from typing import get_args, get_type_hints

    assert set(get_args(get_type_hints(ClinicalConfig)["rendering"])) == set(RENDERING_VERSIONS)


TEXT_OF_VERSION = {
    ("compact", 1): "114eb0d22e8a3335",
    ("values", 1): "f370bae4899516c7",
    ("flags", 1): "657cb305dc003acf",
    ("pairs", 1): "ec9758b333a32be8",
}
"""(rendering, version) -> digest of the text of one record."""


def test_changed_rendering_requires_new_version():
    """The text of a rendering does not change without a new version."""
    schema = parse_schema(extension(fields=[{**FIELD, "reference": {"all": [0.8, 1.2]}}]), where="x")
    values = {"sex": "female", "height": 163.0, "bmi": 31.27, "albumin": 38.0, "ast": 13862.4, "inr": 1.0, "wbc": 0.1}
    example = ClinicalRecord(patient_id="P", values=record(schema, **values).values, report=" Known cirrhosis. ")
    digests = {(n, v): sha256_bytes(render(example, schema, n).encode())[:16] for n, v in RENDERING_VERSIONS.items()}
    assert digests == TEXT_OF_VERSION, "increase the version in RENDERING_VERSIONS and add its digest here"


def test_documented_fields_match_schema():
    """The table of docs/clinical.md has one row for each field, with the content of the schema."""
    rows = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    rows = [line for line in rows if line.count("|") == 8]
    assert rows == [table_row(f) for f in load_schema().fields]


def test_documented_examples_are_valid(tmp_path):
    """The record and the schema of docs/clinical.md are read without error."""
    blocks = DOCUMENT.read_text(encoding="utf-8").split("```json\n")[1:]
    example, schema = (json.loads(block.partition("```")[0]) for block in blocks)
    (tmp_path / "clinical.json").write_text(json.dumps(example))
    liver = load_schema()
    values = read_clinical(Case(folder=tmp_path, case_id="P1"), liver).values
    assert (values["total_bilirubin"], values["ggt"]) == (pytest.approx(20.525, abs=1e-3), None)
    assert set(parse_schema(schema, where="x").by_name) - set(liver.by_name) == {"copper", "oedema"}


def table_row(field: Any) -> str:
    """A field's row in docs/clinical.md."""
    unit = " or ".join(field.choices) if field.choices else field.unit
    other = ", ".join(f"{name} (× {c.factor:g})" for name, c in field.accepted_units.items()) or "–"
    plausible = "–" if field.plausible is None else f"{field.plausible[0]:g} to {field.plausible[1]:g}"
    ranges = {sex: f"{low:g} to {high:g}" for sex, (low, high) in field.reference.items()}
    reference = (
        "–" if not ranges else next(iter(ranges.values())) if len(set(ranges.values())) == 1
        else f"f {ranges['female']}, m {ranges['male']}"
    )  # fmt: skip
    name = f"`{field.name}`" + (" (optional)" if field.optional else "")
    return f"| {name} | {field.label} | {field.section} | {unit} | {other} | {plausible} | {reference} |"


@pytest.mark.parametrize(
    ("name", "text", "unit"),
    [
        ("haemoglobin", "g/dl", "g/dL"), ("total_bilirubin", "MG/DL", "mg/dL"), ("creatinine", "\u00b5mol/L", "umol/L"),
        ("creatinine", "\u03bcmol/l", "umol/L"), ("bile_acid", "mcmol / L", "umol/L"), ("platelets", "/\u00b5l", "/uL"),
        ("wbc", "cells/mm\u00b3", "/uL"), ("neutrophils", "x10\u2079/l", "10^9/L"), ("lymphocytes", "10*9/L", "10^9/L"),
        ("wbc", "K/\u00b5L", "10^3/uL"), ("rbc", "Mio/\u03bcl", "10^6/uL"), ("rbc", "10e12/l", "10^12/L"),
        ("alt", "IU/l", "U/L"), ("platelets", "Zellen/nl", "10^9/L"), ("wbc", "Mrd./l", "10^9/L"),
        ("wbc", "n/\u00b5l", "/uL"), ("albumin", "g\u00b7L\u207b\u00b9", "g/L"), ("albumin", "gm/dl", "g/dL"),
        ("creatinine", "\u043c\u043a\u043c\u043e\u043b\u044c/\u043b", "umol/L"),  # Cyrillic umol/L
        ("platelets", "\u0442\u044b\u0441/\u043c\u043a\u043b", "10^3/uL"),  # Cyrillic thousands per uL
        ("bmi", "kg/m\u00b2", "kg/m2"), ("afp", "\u00b5g/l", "ug/L"), ("albumin", "G/L", "g/L"),
    ],
)  # fmt: skip
def test_unit_is_found_in_any_spelling(name, text, unit):
    """Case, micro signs, superscripts, alphabet and usual names do not matter; the number is converted the same."""
    field = load_schema().by_name[name]
    assert accepted_unit(field, text) == unit or convert(field, 3.0, text) == convert(field, 3.0, unit)
    assert convert(field, 3.0, text) == convert(field, 3.0, unit) is not None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("urea", "mg/dl"),
        ("albumin", "mg/dL"),
        ("wbc", "10^6/uL"),
        ("platelets", ""),
        ("creatinine", "mmol/L"),
        ("creatinine", "\u043c\u043c\u043e\u043b\u044c/\u043b"),
        ("platelets", "Billion/l"),
    ],
)
def test_unit_of_another_size_is_not_accepted(name, text):
    """A spelling is never a guess: another prefix, substance or quantity is another unit."""
    assert accepted_unit(load_schema().by_name[name], text) is None


def test_unit_that_spells_two_units_is_not_accepted():
    """Where case alone distinguishes two units of a field, only the exact spelling is accepted."""
    field = Field(name="x", label="X", section="s", unit="mU/L", accepted_units={"MU/L": Conversion(factor=1e9)})
    assert accepted_unit(field, "MU/L") == "MU/L"
    assert accepted_unit(field, "mu/l") is None


@pytest.mark.parametrize("name", ["wbc", "platelets", "neutrophils", "lymphocytes", "rbc"])
def test_cells_per_microlitre_are_converted(name):
    """Every blood cell count is accepted per microlitre."""
    field = load_schema().by_name[name]
    own = {"rbc": 4.5}.get(name, 6.1)
    assert convert(field, own * {"rbc": 1e6}.get(name, 1e3), "/uL") == pytest.approx(own)


def test_duplicate_of_a_packaged_field_is_a_mistake():
    """A schema that replaces a packaged field twice is rejected, and no definition is dropped."""
    twice = {"name": "albumin", "label": "A", "section": "blood", "unit": "g/L"}
    with pytest.raises(UsageError, match="duplicate field albumin"):
        parse_schema(extension(fields=[twice, {**twice, "unit": "g/dL"}]), where="x")


def test_text_without_hepatology_is_that_of_version_1():
    """The optional fields of hepatology do not change the text of a record without them, in any rendering."""
    schema = load_schema()
    old = parse_schema(extension(without=[f.name for f in schema.fields if f.section == "liver disease"]), where="x")
    values = {"sex": "female", "age": 61.0, "albumin": 38.0, "platelets": 99.0, "sat_area": 120.0}
    for rendering in RENDERING_VERSIONS:
        assert render(record(schema, **values), schema, rendering) == render(record(old, **values), old, rendering)
    assert "AFP 12" in render(record(schema, afp=12.0), schema, "compact")
