"""Detects a clinical record that is empty, or nearly so, whose text holds next to no information."""

from __future__ import annotations

from collections.abc import Iterator

from tmi.toolkit.cases.case import CLINICAL_FILE
from tmi.toolkit.clinical.record import ClinicalRecord
from tmi.toolkit.clinical.schema import Schema
from tmi.toolkit.issues.issue import Issue

MIN_PRESENT = 1 / 8
"""Smallest share of the schema's fields, optional ones excluded, that is no finding: 6 of the liver schema's 42."""
MIN_REPORT_WORDS = 20
"""Number of words from which a free-text report makes up for missing fields."""


def missing_fields(record: ClinicalRecord, schema: Schema) -> tuple[int, int]:
    """Return the number of missing fields, and of all fields of the schema; optional ones are not counted."""
    names = [f.name for f in schema.fields if not f.optional] or [f.name for f in schema.fields]
    return sum(record.values.get(name) is None for name in names), len(names)


def check_completeness(record: ClinicalRecord, schema: Schema) -> Iterator[Issue]:
    """Yield the issue of a record with less than `MIN_PRESENT` of the fields and without a report."""
    missing, total = missing_fields(record, schema)
    words = sum(any(map(str.isalpha, word)) for word in (record.report or "").split())
    if total - missing < MIN_PRESENT * total and words < MIN_REPORT_WORDS:
        yield Issue.of(
            "clinical-incomplete",
            f"{missing} of {total} fields of {CLINICAL_FILE} are missing",
            "give the patient's values; a field that was not measured may stay missing",
            count=missing,
        )
