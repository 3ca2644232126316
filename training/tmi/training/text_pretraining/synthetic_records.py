"""Records drawn from a clinical schema: no patient, no outcome, no law of any disease; what fields may hold alone.

A number's place on its field's scale is s in [-1, 1]: drawn evenly, and turned into a value by

    s in [-1/3, 1/3]   evenly between the ends of the reference range
    |s| > 1/3          outwards to the end of the plausible range, r = (3 |s| - 1) / 2 in (0, 1],
                       value = end of the reference range * (end of the plausible range / it)^(r^2)

by differences instead of ratios where an end is 0 or less, and evenly over the plausible range where the field has no
reference. So half of what is drawn lies where values of patients lie, and every plausible value can be read. A field
with neither range is drawn log-evenly from 0.1 to 1000. Of each record a part of the fields is missing, none to half.

N records, F fields of the schema, in its order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from tmi.toolkit.clinical.record import ClinicalRecord, Value
from tmi.toolkit.clinical.schema import Field, Schema

MAX_MISSING_FRACTION = 0.5
"""Upper end of the part of the fields that a record lacks; the part is this times the square of an even draw."""
DEFAULT_RANGE = (0.1, 1000.0)
"""Of a number of which the schema says nothing."""
SIGNIFICANT_DIGITS = (2, 3, 4)
"""Significant digits that values are rounded to, each as often."""
MEAN_MISSING_FRACTION = MAX_MISSING_FRACTION / 3.0
"""Mean part of the fields that a record lacks."""
REFERENCE_UPPER_POSITION = 1.0 / 3.0
"""Place of the reference range's upper end on the scale."""


@dataclass(frozen=True, kw_only=True)
class SyntheticRecords:
    """Records as numbers."""

    position_NF: Float[np.ndarray, "N F"]
    """Place of a number on its field's scale; of a word, 0."""
    choice_NF: Int[np.ndarray, "N F"]
    """Index of a word among its field's choices; of a number, 0."""
    present_NF: Bool[np.ndarray, "N F"]
    """Whether the record has the field."""
    digits_NF: Int[np.ndarray, "N F"]
    """Significant digits of a number."""


def sample_records(rng: np.random.Generator, schema: Schema, count: int) -> SyntheticRecords:
    """`count` records."""
    shape = (count, len(schema.fields))
    choices = np.array([len(f.choices or "1") for f in schema.fields])
    lacking = MAX_MISSING_FRACTION * rng.random((count, 1)) ** 2
    return SyntheticRecords(
        position_NF=np.where(choices > 1, 0.0, rng.uniform(-1.0, 1.0, shape)),
        choice_NF=rng.integers(0, choices, shape),
        present_NF=rng.random(shape) >= lacking,
        digits_NF=rng.choice(SIGNIFICANT_DIGITS, shape),
    )


def to_clinical_records(sampled: SyntheticRecords, schema: Schema) -> list[ClinicalRecord]:
    """The records as `tmi.toolkit.clinical.record.read_clinical` would have read them."""
    columns: list[list[Value]] = []
    for i, field in enumerate(schema.fields):
        present = sampled.present_NF[:, i]
        if field.choices is not None:
            words = field.choices
            columns.append([words[k] if p else None for k, p in zip(sampled.choice_NF[:, i], present, strict=True)])
            continue
        values = value_at_position(field, sampled.position_NF[:, i])
        numbers = (float(f"{v:.{d}g}") for v, d in zip(values, sampled.digits_NF[:, i], strict=True))
        columns.append([v if p else None for v, p in zip(numbers, present, strict=True)])
    names = [field.name for field in schema.fields]
    return [
        ClinicalRecord(patient_id=None, values=dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)
    ]


def value_at_position(field: Field, position_N: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Values, in the field's unit, at places of its scale."""
    lowest, highest = field.plausible or DEFAULT_RANGE
    if not field.reference:
        if field.plausible is None:
            return _between(lowest, highest, (position_N + 1.0) / 2.0)
        return lowest + (highest - lowest) * (position_N + 1.0) / 2.0
    low, high = np.mean(list(field.reference.values()), axis=0)
    lowest, highest = min(lowest, low), max(highest, high)
    inside = low + (high - low) * (position_N / REFERENCE_UPPER_POSITION + 1.0) / 2.0
    outwards = (
        np.clip((np.abs(position_N) - REFERENCE_UPPER_POSITION) / (1.0 - REFERENCE_UPPER_POSITION), 0.0, 1.0) ** 2
    )
    return np.where(
        np.abs(position_N) <= REFERENCE_UPPER_POSITION,
        inside,
        np.where(position_N > 0, _between(high, highest, outwards), _between(low, lowest, outwards)),
    )


def _between(start: float, end: float, fraction_N: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """From one value to another, by ratios where both are above 0."""
    if min(start, end) > 0.0:
        return start * (end / start) ** fraction_N
    return start + (end - start) * fraction_N
