"""Clinical records: fields, units and rejected records, whose messages contain no value of the patient."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tmi.toolkit.cases.case import Case
from tmi.toolkit.clinical.record import ClinicalRecord, read_clinical
from tmi.toolkit.clinical.schema import load_schema, parse_schema
from tmi.toolkit.errors import InputRejectedError, UsageError
from tmi.toolkit.qc.case_checks import check_cases
from tmi.toolkit.storage.bounded_files import RECORD_BYTES

SCHEMA = load_schema()
HEPATOLOGY = [
    "afp", "inr", "child_pugh", "ascites", "encephalopathy", "tumour_size", "tumour_number", "portal_vein_thrombosis",
]  # fmt: skip
BLOOD = """wbc rbc haemoglobin platelets neutrophils lymphocytes alt ast alp ggt total_protein albumin total_bilirubin
direct_bilirubin bile_acid cholinesterase triglycerides cholesterol hdl ldl urea creatinine cystatin_c""".split()
UNITS = {
    "10^9/L": "wbc platelets neutrophils lymphocytes",
    "10^12/L": "rbc",
    "g/L": "haemoglobin total_protein albumin",
    "U/L": "alt ast alp ggt cholinesterase",
    "umol/L": "total_bilirubin direct_bilirubin bile_acid creatinine",
    "mmol/L": "triglycerides cholesterol hdl ldl urea",
    "mg/L": "cystatin_c",
}


def write(folder: Path, data: object, *, patient_id: str | None = None) -> Case:
    text = data if isinstance(data, str | bytes) else json.dumps(data)
    (folder / "clinical.json").write_bytes(text.encode() if isinstance(text, str) else text)
    return Case(folder=folder, case_id="P1", patient_id=patient_id)


def read(folder: Path, values: dict[str, object]) -> ClinicalRecord:
    return read_clinical(write(folder, {"values": values}), SCHEMA)


def rejection(folder: Path, data: object, *, patient_id: str | None = None) -> InputRejectedError:
    with pytest.raises(InputRejectedError) as error:
        read_clinical(write(folder, data, patient_id=patient_id), SCHEMA)
    assert error.value.case_id == "P1"
    assert error.value.fix
    return error.value


def test_schema_has_paper_fields_and_optional_ones():
    """The liver schema has the paper's fields in their order, three optional ones, and eight of hepatology."""
    names = {s: [f.name for f in SCHEMA.fields if f.section == s and not f.optional] for s in SCHEMA.sections}
    assert SCHEMA.sections == ("basic", "blood", "fat analysis", "liver disease")
    assert names["basic"] == ["sex", "height", "bmi"]
    assert names["blood"] == BLOOD
    assert len(BLOOD) == 23
    depots, measures = ("sat", "imat", "vat", "soft_tissue"), ("volume", "area", "volume_fraction", "area_fraction")
    assert names["fat analysis"] == [f"{d}_{m}" for d in depots for m in measures]
    optional = {s: [f.name for f in SCHEMA.fields if f.section == s and f.optional] for s in SCHEMA.sections}
    assert optional.pop("liver disease") == HEPATOLOGY
    assert optional == {"basic": ["age", "weight", "aetiology"], "blood": [], "fat analysis": []}
    assert "hepatitis B and C" in (SCHEMA.by_name["aetiology"].choices or ())


def test_blood_and_fat_units():
    """Blood items and fat measures have the units of the specification."""
    units = {f.name: f.unit for f in SCHEMA.fields}
    expected = {name: unit for unit, names in UNITS.items() for name in names.split()}
    assert {n: units[n] for n in BLOOD} == expected
    fat = {n.rpartition("_")[2] if not n.endswith("fraction") else "%": u for n, u in units.items() if "at_" in n}
    assert fat == {"volume": "cm3", "area": "cm2", "%": "%"}


def test_every_number_has_plausible_range():
    """Every number has a plausible range that contains its reference ranges."""
    for field in SCHEMA.fields:
        assert (field.choices is None) != (field.unit is None), field.name
        if field.unit is not None:
            assert field.plausible is not None, field.name
            low, high = field.plausible
            assert low < high
            for reference in field.reference.values():
                assert low <= reference[0] < reference[1] <= high, field.name
            assert set(field.reference) in (set(), {"female", "male"}), field.name


def test_null_and_absent_fields_are_missing(tmp_path):
    """A record has every field of the schema; null and absent ones are None."""
    record = read(tmp_path, {"sex": "female", "ggt": None, "alt": {"value": None, "unit": "U/L"}, "albumin": 38})
    assert list(record.values) == [f.name for f in SCHEMA.fields]
    assert {n: v for n, v in record.values.items() if v is not None} == {"sex": "female", "albumin": 38.0}


@pytest.mark.parametrize(
    ("field", "value", "unit", "expected"),
    [
        ("total_bilirubin", 1.2, "mg/dL", 20.52),
        ("direct_bilirubin", 0.3, "mg/dL", 5.13),
        ("creatinine", 1.0, "mg/dL", 88.42),
        ("albumin", 3.8, "g/dL", 38.0),
        ("haemoglobin", 13.5, "g/dL", 135.0),
        ("cholesterol", 200, "mg/dL", 5.17),
        ("hdl", 50, "mg/dL", 1.293),
        ("triglycerides", 150, "mg/dL", 1.694),
        ("urea", 14, "mg/dL BUN", 5.0),
        ("platelets", 150, "10^3/uL", 150.0),
        ("rbc", 4.5, "10^6/uL", 4.5),
        ("cholinesterase", 7.5, "kU/L", 7500.0),
        ("height", 1.7, "m", 170.0),
        ("weight", 150, "lb", 68.04),
        ("sat_volume", 5.2, "L", 5200.0),
        ("vat_area", 12_000, "mm2", 120.0),
        ("imat_area_fraction", 0.42, "fraction", 42.0),
        ("albumin", 38, "g/L", 38.0),
    ],
)
def test_units_are_converted(tmp_path, field, value, unit, expected):
    """A value in an accepted unit is converted to the field's own unit."""
    record = read(tmp_path, {field: {"value": value, "unit": unit}})
    assert record.values[field] == pytest.approx(expected, rel=1e-3)


def test_other_keys_are_read(tmp_path):
    """Patient id, report and blood date are read unchanged."""
    data = {"patient_id": "X9", "values": {}, "report": "Known cirrhosis.", "blood_date": "2024-03-01"}
    record = read_clinical(write(tmp_path, data, patient_id="X9"), SCHEMA)
    assert (record.patient_id, record.report, record.blood_date) == ("X9", "Known cirrhosis.", "2024-03-01")


@pytest.mark.parametrize(
    ("values", "code", "message", "fix"),
    [
        ({"albumen": 38}, "clinical-unknown-field", "'albumen'", "docs/clinical.md"),
        ({"albumin": {"value": 38, "unit": "stone"}}, "clinical-unit", "albumin", "g/L, g/dL"),
        ({"albumin": 3.81234}, "clinical-unit-suspect", "albumin is implausible in g/L and looks like g/dL", "g/dL"),
        ({"albumin": 81.1234}, "clinical-range", "albumin lies outside 10 to 70 g/L", "g/L is assumed"),
        ({"albumin": -38.1234}, "clinical-range", "albumin", "g/L is assumed"),
        ({"albumin": 1e300}, "clinical-range", "albumin", "unit"),
        ({"total_bilirubin": {"value": 81234, "unit": "mg/dL"}}, "clinical-range", "total_bilirubin", "unit"),
        ({"albumin": "38.1234"}, "clinical-type", "albumin is not a number", "null"),
        ({"albumin": True}, "clinical-type", "albumin is not a number", "null"),
        ({"albumin": [38.1234]}, "clinical-type", "albumin is not a number", "null"),
        ({"albumin": {"value": 38.1234}}, "clinical-type", "albumin is not a number", "unit"),
        ({"albumin": {"value": 38.1234, "unit": 7}}, "clinical-type", "albumin is not a number", "unit"),
        ({"albumin": 10**400}, "clinical-malformed", "an integer of more than 40 digits", "null"),
        ({"albumin": 10**39}, "clinical-range", "albumin", "unit"),
        ({"sex": "81234"}, "clinical-type", "sex is not one of its choices", "female, male"),
        ({"sex": 81234}, "clinical-type", "sex is not one of its choices", "female, male"),
        ({"sex": {"value": "female", "unit": "81234"}}, "clinical-type", "sex is not one", "female, male"),
        ({"aetiology": "81234"}, "clinical-type", "aetiology", "hepatitis B"),
    ],
)
def test_invalid_value_is_rejected_without_value(tmp_path, values, code, message, fix):
    """An invalid value is rejected with its field, and the message does not contain the value."""
    error = rejection(tmp_path, {"values": values})
    assert error.code == code
    assert message in str(error)
    assert fix in error.fix
    for secret in ("1234", "38", "1e", "stone", "0000"):
        assert secret not in f"{error} {error.fix}"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_non_finite_number_is_out_of_range(tmp_path, number):
    """NaN and infinity are rejected as out of range."""
    assert rejection(tmp_path, f'{{"values": {{"albumin": {number}}}}}').code == "clinical-range"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "is not JSON"),
        ('{"values": {"albumin": 38.1234}', "is not JSON"),
        (b"\xff38.1234", "is not text in UTF-8"),
        ("[" * 100_000, "is nested deeper than 64 levels"),
        ([], 'has no object "values"'),
        ({}, 'has no object "values"'),
        ({"values": [38.1234]}, 'has no object "values"'),
        ({"values": {}, "81234": 1}, "has a key other than"),
        ({"values": {}, "report": 81234}, 'has a "report" that is not a string'),
        ({"values": {}, "patient_id": 81234}, 'has a "patient_id" that is not a string'),
        ({"values": {}, "blood_date": 81234}, 'has a "blood_date" that is not a string'),
        ('{"values": {}, "report": "' + "x" * RECORD_BYTES + '"}', "it is larger than 4 MiB"),
        ('{"values": ' + "[" * 500 + "]" * 500 + "}", "is nested deeper than 64 levels"),
        ('{"values": {"albumin": ' + "9" * 4000 + "}}", "contains an integer of more than 40 digits"),
    ],
    ids=lambda v: v if isinstance(v, str) and len(v) < 40 else None,
)
def test_malformed_record_is_rejected_without_content(tmp_path, data, message):
    """A malformed record is rejected, and the message does not contain its content."""
    error = rejection(tmp_path, data)
    assert error.code == "clinical-malformed"
    assert message in str(error)
    assert "1234" not in f"{error} {error.fix}"


def test_duplicate_field_is_rejected(tmp_path):
    """A field given twice is rejected; neither value is used."""
    error = rejection(tmp_path, '{"values": {"albumin": 38.1234, "albumin": 41}}')
    assert error.code == "clinical-malformed"
    assert "twice" in str(error)
    assert "1234" not in str(error)


def test_missing_record_and_other_patient_are_rejected(tmp_path):
    """A missing record and the record of another patient are rejected, without the patient's name."""
    with pytest.raises(InputRejectedError, match=r"clinical\.json is missing") as error:
        read_clinical(Case(folder=tmp_path, case_id="P1"), SCHEMA)
    assert error.value.code == "clinical-missing"
    error = rejection(tmp_path, {"patient_id": "Jane81234", "values": {}}, patient_id="P001")
    assert error.code == "patient-mismatch"
    assert "Jane" not in f"{error} {error.fix}"


def test_byte_order_mark_is_accepted(tmp_path):
    """A record with a UTF-8 byte order mark is read."""
    case = write(tmp_path, b"\xef\xbb\xbf" + b'{"values": {"albumin": 38}}')
    assert read_clinical(case, SCHEMA).values["albumin"] == 38.0


def test_schema_of_other_disease(tmp_path):
    """A schema file of another disease defines fields and conversions without code."""
    file = tmp_path / "lung.json"
    fields = [
        {"name": "fev1", "label": "FEV1", "section": "lung", "unit": "L", "accepted_units": {"mL": {"factor": 0.001}}},
        {"name": "temperature", "label": "T", "section": "lung", "unit": "C",
         "accepted_units": {"F": {"factor": 0.5555556, "offset": -17.777778}}},
    ]  # fmt: skip
    data = {"schema": "tmi-clinical-schema/1", "name": "lung", "version": "1", "sections": ["lung"], "fields": fields}
    file.write_text(json.dumps(data))
    schema = load_schema(file)
    given = {"fev1": {"value": 2500, "unit": "mL"}, "temperature": {"value": 98.6, "unit": "F"}}
    record = read_clinical(write(tmp_path, {"values": given}), schema)
    assert record.values == pytest.approx({"fev1": 2.5, "temperature": 37.0}, rel=1e-5)
    assert schema.digest != SCHEMA.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "tmi-clinical-schema/9"}, "tmi-clinical-schema/9"),
        ({"fields": [{"name": "a", "label": "A", "section": "s"}]}, "either a unit or choices"),
        ({"fields": [{"name": "a", "label": "A", "section": "t", "unit": "L"}]}, "unknown section t"),
        ({"fields": [{"name": "a", "label": "A", "section": "s", "unit": "L"}] * 2}, "duplicate field a"),
        ({"fields": [{"name": "a", "label": "A", "section": "s", "unit": "L", "colour": 1}]}, "colour"),
    ],
)
def test_malformed_schema_is_rejected(change, message):
    """A malformed schema is a usage error with its cause."""
    data = {"schema": "tmi-clinical-schema/1", "name": "n", "version": "1", "sections": ["s"], "fields": []} | change
    with pytest.raises(UsageError) as error:
        parse_schema(data, where="schema.json")
    assert message in str(error.value)


def test_error_names_every_faulty_value(tmp_path):
    """A record with several faulty values is rejected once, with all of them; the code is that of the first."""
    values = {"albumin": 999, "height": "tall", "age": 300, "unknown": 1}
    error = rejection(tmp_path, {"values": values})
    assert error.code == "clinical-unknown-field"
    assert "4 values cannot be used: " in error.what
    for part in ("no field 'unknown'", "albumin lies outside", "height is not a number", "age lies outside"):
        assert part in error.what
    assert "999" not in error.what
    assert "300" not in error.what


def test_check_lists_every_faulty_value(tmp_path):
    """`tmi check` has a finding for each faulty value of a record."""
    case = write(tmp_path, {"values": {"albumin": 999, "height": "tall", "age": 300}})
    found = [f.code for f in check_cases([case], records_only=True)]
    assert found == ["clinical-type", "clinical-range", "clinical-range"]


@pytest.mark.parametrize("text", ["31.01.2026", "2026-13-01", "yesterday", "20", ""])
def test_blood_date_that_is_no_date_is_a_finding(tmp_path, text):
    """A blood date in another format is reported, and not dropped in silence."""
    case = write(tmp_path, {"values": complete(), "blood_date": text})
    assert [f.code for f in check_cases([case], records_only=True)] == ["clinical-date"]


@pytest.mark.parametrize("text", ["2026-01-31", "2026-01-31T08:15:00", " 2026-01-31 "])
def test_iso_blood_date_is_no_finding(tmp_path, text):
    """An ISO date, with or without a time, is no finding."""
    assert check_cases([write(tmp_path, {"values": complete(), "blood_date": text})], records_only=True) == []


def complete() -> dict[str, object]:
    """Enough plausible values for a record that has no finding."""
    return {"sex": "female", "albumin": 45, "wbc": 5, "rbc": 4.5, "ast": 20, "alt": 20, "alp": 60, "ggt": 20}
