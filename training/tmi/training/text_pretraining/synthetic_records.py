"""Samples synthetic clinical records from a schema's ranges and choices, independently of any patient or disease.

A number has a position s on its field's scale, sampled uniformly from [-1, 1] and mapped to a value by

    s in [-1/3, 1/3]   linear between the ends of the reference range
    |s| > 1/3          from the end of the reference range to the end of the plausible range,
                       r = (3 |s| - 1) / 2 in (0, 1],
                       value = reference end * (plausible end / reference end)^(r^2)

An end of 0 or less is interpolated linearly instead of geometrically. A field without a reference range is linear over
its plausible range, and one without either range is log-uniform from 0.1 to 1000. The values thus concentrate at and
near the reference range and still cover the whole plausible range. In each record none to half of the fields are
missing.

N records, F fields of the schema, in its order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from tmi.toolkit.clinical.record import ClinicalRecord, Value
from tmi.toolkit.clinical.schema import Field, Schema

MAX_MISSING_FRACTION = 0.5
"""Maximum fraction of missing fields of a record; the fraction is this times the square of a uniform sample."""
DEFAULT_RANGE = (0.1, 1000.0)
"""Range of a number without ranges in the schema."""
SIGNIFICANT_DIGITS = (2, 3, 4)
"""Numbers of significant digits for rounding, with equal probability."""
MEAN_MISSING_FRACTION = MAX_MISSING_FRACTION / 3.0
"""Mean fraction of missing fields of a record."""
REFERENCE_UPPER_POSITION = 1.0 / 3.0
"""Position of the reference range's upper end on the scale."""


@dataclass(frozen=True, kw_only=True)
class SyntheticRecords:
    """Sampled records in numeric form."""

    position_NF: Float[np.ndarray, "N F"]
    """Position of a number on its field's scale; 0 for a choice."""
    choice_NF: Int[np.ndarray, "N F"]
    """Index among the field's choices; 0 for a number."""
    present_NF: Bool[np.ndarray, "N F"]
    """Whether the field is present."""
    digits_NF: Int[np.ndarray, "N F"]
    """Significant digits of a number."""


def sample_records(rng: np.random.Generator, schema: Schema, count: int) -> SyntheticRecords:
    """Sample `count` records."""
    shape = (count, len(schema.fields))
    choices = np.array([len(f.choices or "1") for f in schema.fields])
    missing_fraction = MAX_MISSING_FRACTION * rng.random((count, 1)) ** 2
    return SyntheticRecords(
        position_NF=np.where(choices > 1, 0.0, rng.uniform(-1.0, 1.0, shape)),
        choice_NF=rng.integers(0, choices, shape),
        present_NF=rng.random(shape) >= missing_fraction,
        digits_NF=rng.choice(SIGNIFICANT_DIGITS, shape),
    )


def to_clinical_records(sampled: SyntheticRecords, schema: Schema) -> list[ClinicalRecord]:
    """Convert sampled records to the type that `tmi.toolkit.clinical.record.read_clinical` returns."""
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
    """Values at positions of a field's scale, in the field's unit."""
    lowest, highest = field.plausible or DEFAULT_RANGE
    if not field.reference:
        if field.plausible is None:
            return _interpolate(lowest, highest, (position_N + 1.0) / 2.0)
        return lowest + (highest - lowest) * (position_N + 1.0) / 2.0
    low, high = np.mean(list(field.reference.values()), axis=0)
    lowest, highest = min(lowest, low), max(highest, high)
    inside = low + (high - low) * (position_N / REFERENCE_UPPER_POSITION + 1.0) / 2.0
    # r^2: the square concentrates values outside the reference range near its ends
    outside = np.clip((np.abs(position_N) - REFERENCE_UPPER_POSITION) / (1.0 - REFERENCE_UPPER_POSITION), 0.0, 1.0) ** 2
    return np.where(
        np.abs(position_N) <= REFERENCE_UPPER_POSITION,
        inside,
        np.where(position_N > 0, _interpolate(high, highest, outside), _interpolate(low, lowest, outside)),
    )


def _interpolate(start: float, end: float, fraction_N: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Interpolate from `start` to `end`, geometrically if both are positive, else linearly."""
    if min(start, end) > 0.0:
        return start * (end / start) ** fraction_N
    return start + (end - start) * fraction_N
