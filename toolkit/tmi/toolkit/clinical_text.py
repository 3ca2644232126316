"""From a clinical record to the sentence list that the text encoder reads. Named, versioned choices.

`values` (as in the paper): a sentence a field, "Albumin: 38 g/L."; `flags`: the same plus low, normal or high by the
reference range of the patient's sex; `pairs` (as in the released code): name and value alone, joined by spaces. A
missing field is said to be missing; an optional one that is missing is left out. A free-text report is appended as it
is.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from tmi.toolkit.clinical import ClinicalRecord, Value
from tmi.toolkit.clinical_schema import Field, Schema

Rendering = Literal["values", "flags", "pairs"]
RENDERING_VERSIONS: Mapping[str, int] = MappingProxyType({"values": 1, "flags": 1, "pairs": 1})
"""Version of each rendering; raised whenever its text changes for any record."""


def render(record: ClinicalRecord, schema: Schema, rendering: Rendering) -> str:
    """The record as text, fields in the schema's order."""
    sex = record.values.get("sex")
    sentences = []
    for field in schema.fields:
        value = record.values.get(field.name)
        if value is None and field.optional:
            continue
        if rendering == "pairs":
            sentences.append(f"{field.label}: {_value(value)}")
            continue
        unit = f" {field.unit}" if isinstance(value, float) and field.unit else ""
        flag = _flag(field, value, sex) if rendering == "flags" else ""
        sentences.append(f"{field.label}: {_value(value)}{unit}{flag}.")
    if record.report and not record.report.isspace():
        sentences.append(record.report.strip())
    return " ".join(sentences)


def _value(value: Value) -> str:
    if value is None:
        return "missing"
    if isinstance(value, str):
        return value
    # from 9999.5 on, four digits would be written with an exponent
    return f"{value:.4g}" if abs(value) < 9999.5 else f"{value:.0f}"


def _flag(field: Field, value: Value, sex: Value) -> str:
    if not isinstance(value, float):
        return ""
    ranges = field.reference
    bounds = ranges.get(sex) if isinstance(sex, str) else None
    if bounds is None and len(set(ranges.values())) == 1:
        bounds = next(iter(ranges.values()))  # the same for both sexes
    if bounds is None:
        return ""
    return " (low)" if value < bounds[0] else " (high)" if value > bounds[1] else " (normal)"
