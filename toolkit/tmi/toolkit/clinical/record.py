"""Reads and validates the clinical record of a case.

    {"patient_id": "P001",
     "values": {"sex": "female", "albumin": 38, "total_bilirubin": {"value": 1.2, "unit": "mg/dL"}, "ggt": null},
     "report": null}

A plain number is in the schema's unit. A null or absent field is missing; missing values are not imputed here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from tmi.toolkit.cases.case import CLINICAL_FILE, Case, access_error
from tmi.toolkit.cases.loaded import case_bytes
from tmi.toolkit.clinical.schema import Field, Schema, convert, plausible
from tmi.toolkit.clinical.units import other_units
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.issues.issue import Issue
from tmi.toolkit.storage.bounded_files import RECORD_BYTES, is_access_error
from tmi.toolkit.storage.documents import DocumentError, NotFiniteError, parse_json

Value = float | str | None
KEYS = ("patient_id", "values", "report", "blood_date")
MAX_NAMED_FAULTS = 20
"""Number of faulty values that one error names."""


@dataclass(frozen=True, kw_only=True)
class ClinicalRecord:
    """Clinical record of one patient, with values in the schema's units."""

    patient_id: str | None
    """Patient id in the record."""
    values: Mapping[str, Value]
    """Every field of the schema; None if missing."""
    report: str | None = None
    """Free text, unchanged."""
    blood_date: str | None = None
    """ISO date of the blood sample, if given."""


def read_clinical(case: Case, schema: Schema) -> ClinicalRecord:
    """Read the record of a case; error messages never contain a value of the patient.

    Raises:
        InputRejectedError: clinical-missing, clinical-malformed, clinical-unknown-field, clinical-type, clinical-unit,
            clinical-unit-suspect, clinical-range, patient-mismatch, case-unreadable. Its message names every faulty
            value; its code and fix are those of the first.
    """
    record, faults = read_all_clinical(case, schema)
    if faults:
        raise _joined(faults)
    return record


def read_all_clinical(case: Case, schema: Schema) -> tuple[ClinicalRecord, list[InputRejectedError]]:
    """Read the record of a case, and return an error for each value that cannot be used; such a value is None.

    Raises:
        InputRejectedError: clinical-missing, clinical-malformed, patient-mismatch, case-unreadable: the whole record.
    """
    from tmi.toolkit.cases.arrays import CaseArrays  # imports numpy, which `tmi --help` does not need

    if not case.has_record:
        raise _input_error(
            case,
            "clinical-missing",
            f"{CLINICAL_FILE} is missing",
            f"add {CLINICAL_FILE} to the case folder; unknown fields may be omitted",
        )
    try:
        if isinstance(case, CaseArrays):
            data = parse_json(case.record_json())
        else:
            data = parse_json(case_bytes(case, CLINICAL_FILE, max_bytes=RECORD_BYTES))
    except OSError as error:
        if is_access_error(error):
            raise access_error(CLINICAL_FILE, error, case.case_id) from error
        raise _malformed(case, f"cannot be read: {error.strerror}") from error
    except NotFiniteError as error:
        fix = "give finite numbers, and null for a missing value"
        raise _input_error(case, "clinical-range", f"{CLINICAL_FILE} {error.reason}", fix) from error
    except DocumentError as error:
        raise _malformed(case, error.reason) from error
    if not isinstance(data, dict) or not isinstance(data.get("values"), dict):
        raise _malformed(case, 'has no object "values"')
    unknown = sorted(str(k) for k in data if k not in KEYS)
    if unknown:
        raise _malformed(case, "has a key other than " + ", ".join(KEYS))
    for key in ("patient_id", "report", "blood_date"):
        if data.get(key) is not None and not isinstance(data[key], str):
            raise _malformed(case, f'has a "{key}" that is not a string')
    patient_id = data.get("patient_id")
    if case.patient_id is not None and patient_id is not None and patient_id != case.patient_id:
        raise _input_error(
            case,
            "patient-mismatch",
            f"{CLINICAL_FILE} belongs to another patient than cohort.csv states",
            "add the record of the right patient, or correct cohort.csv",
        )
    values, faults = read_all_values(case, data["values"], schema)
    record = ClinicalRecord(
        patient_id=patient_id, values=values, report=data.get("report"), blood_date=data.get("blood_date")
    )
    return record, faults


def read_all_values(
    case: Case, given: Mapping[str, Any], schema: Schema
) -> tuple[dict[str, Value], list[InputRejectedError]]:
    """Convert values to the schema's units; fields that are not given are None. `case` is named in errors.

    Returns:
        The value of each field, None if it cannot be used; and an error for each that cannot: clinical-unknown-field,
        clinical-type, clinical-unit, clinical-unit-suspect, clinical-range.
    """
    fields = schema.by_name
    faults = [
        _input_error(
            case,
            "clinical-unknown-field",
            f"{CLINICAL_FILE}: the schema has no field {name[:40]!r}",
            "use the schema's field names (docs/clinical.md), or extend the schema",
        )
        for name in sorted(set(given) - set(fields))
    ]
    values: dict[str, Value] = {}
    for name, field in fields.items():
        values[name] = None
        try:
            values[name] = _read_value(case, field, given.get(name))
        except InputRejectedError as error:
            faults.append(error)
    return values, faults


def iso_date(text: str) -> date | None:
    """Return the date of a text YYYY-MM-DD, with or without a time; None if it is no such text."""
    try:
        return date.fromisoformat(text.strip()[:10])
    except ValueError:
        return None


def check_blood_date(record: ClinicalRecord) -> Iterator[Issue]:
    """Yield the issue of a blood date that is no ISO date, whose distance to the CT is then unknown."""
    if record.blood_date is not None and iso_date(record.blood_date) is None:
        yield Issue.of(
            "clinical-date",
            f"{CLINICAL_FILE}: blood_date is no date, so the days between blood sample and CT are unknown",
            "write it as YYYY-MM-DD, or omit it",
        )


def _joined(faults: list[InputRejectedError]) -> InputRejectedError:
    """One error that names every fault, with the code and fix of the first."""
    if len(faults) == 1:
        return faults[0]
    messages = [fault.what.removeprefix(f"{CLINICAL_FILE}: ") for fault in faults[:MAX_NAMED_FAULTS]]
    if len(faults) > MAX_NAMED_FAULTS:
        messages.append(f"and {len(faults) - MAX_NAMED_FAULTS} more")
    what = f"{CLINICAL_FILE}: {len(faults)} values cannot be used: {'; '.join(messages)}"
    return InputRejectedError.of([issue for fault in faults for issue in fault.issues], what=what)


def _read_value(case: Case, field: Field, value: Any) -> Value:
    unit = None
    if isinstance(value, dict):
        if set(value) != {"value", "unit"} or not isinstance(value["unit"], str):
            raise _wrong_type(case, field)
        value, unit = value["value"], value["unit"]
    if value is None:
        return None
    if field.choices is not None:
        if unit is None and isinstance(value, str) and value in field.choices:
            return value
        raise _input_error(
            case,
            "clinical-type",
            f"{CLINICAL_FILE}: {field.name} is not one of its choices",
            f"write one of {', '.join(field.choices)}",
        )
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong_type(case, field)
    try:
        number = convert(field, float(value), unit)
    except OverflowError as error:
        raise _wrong_type(case, field) from error
    if number is None:
        known = ", ".join([field.unit or "", *field.accepted_units])
        raise _input_error(
            case,
            "clinical-unit",
            f"{CLINICAL_FILE}: {field.name} is given in a unit that the schema does not accept",
            f"give it in one of: {known}",
        )
    if not math.isfinite(number) or not plausible(field, number):
        # a value that would be plausible in another unit gets its own code and fix
        if units := other_units(field, float(value), given=unit):
            raise _input_error(
                case,
                "clinical-unit-suspect",
                f"{CLINICAL_FILE}: {field.name} is implausible in {unit or field.unit} and looks like {units[0]}",
                f'give the unit with the value: {{"value": ..., "unit": "{units[0]}"}}',
            )
        low, high = field.plausible or (-math.inf, math.inf)
        raise _input_error(
            case,
            "clinical-range",
            f"{CLINICAL_FILE}: {field.name} lies outside {low:g} to {high:g} {field.unit}",
            f"check the value and its unit ({field.unit} is assumed if none is given)",
        )
    return number


def _input_error(case: Case, code: str, what: str, fix: str) -> InputRejectedError:
    return InputRejectedError(what, fix=fix, code=code, case_id=case.case_id)


def _malformed(case: Case, what: str) -> InputRejectedError:
    return _input_error(
        case,
        "clinical-malformed",
        f"{CLINICAL_FILE} {what}",
        'write {"patient_id": ..., "values": {field: value}, "report": text or null}',
    )


def _wrong_type(case: Case, field: Field) -> InputRejectedError:
    return _input_error(
        case,
        "clinical-type",
        f"{CLINICAL_FILE}: {field.name} is not a number",
        'write a number, null, or {"value": number, "unit": "..."}',
    )
