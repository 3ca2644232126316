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

from tmi.toolkit.clinical.record import ClinicalRecord, Value
from tmi.toolkit.clinical.schema import ANY_SEX, Field, Schema
from tmi.toolkit.errors import DamagedError

Rendering = Literal["values", "flags", "pairs"]
RENDERING_VERSIONS: Mapping[str, int] = MappingProxyType({"values": 1, "flags": 1, "pairs": 1})
"""Version of each rendering; raised whenever its text changes for any record."""


def render(record: ClinicalRecord, schema: Schema, rendering: Rendering) -> str:
    """The record as text, fields in the schema's order."""
    return " ".join(sentence for _, sentence in sentences(record, schema, rendering))


def sentences(record: ClinicalRecord, schema: Schema, rendering: Rendering) -> list[tuple[str | None, str]]:
    """The pieces that `render` joins with single spaces: name of the field, and None for the free-text report."""
    sex = record.values.get("sex")
    pieces: list[tuple[str | None, str]] = []
    for field in schema.fields:
        value = record.values.get(field.name)
        if value is None and field.optional:
            continue
        if rendering == "pairs":
            pieces.append((field.name, f"{field.label}: {_value(value)}"))
            continue
        unit = f" {field.unit}" if isinstance(value, float) and field.unit else ""
        flag = _flag(field, value, sex) if rendering == "flags" else ""
        pieces.append((field.name, f"{field.label}: {_value(value)}{unit}{flag}."))
    if record.report and not record.report.isspace():
        pieces.append((None, record.report.strip()))
    return pieces


def require_rendering(rendering: str, version: int | None, *, kind: str) -> None:
    """Refuse text that would differ from what the models were trained on.

    Args:
        rendering: name of the rendering.
        version: its version when the models were trained.
        kind: `run` or `bundle`, for the error text.

    Raises:
        DamagedError: this version of the package renders otherwise, as for any form of file that it does not know.
    """
    here = RENDERING_VERSIONS.get(rendering)
    if here is None or here != version:
        raise DamagedError(
            f"{kind}: its models were trained on clinical text {rendering!r} version {version}; "
            f"this tmi writes version {here}",
            fix=f"use the tmi version that made the {kind}, or train again with this one",
        )


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
    bounds = ranges.get(sex, ranges.get(ANY_SEX)) if isinstance(sex, str) else ranges.get(ANY_SEX)
    if bounds is None and len(set(ranges.values())) == 1:
        bounds = next(iter(ranges.values()))  # the same for both sexes
    if bounds is None:
        return ""
    return " (low)" if value < bounds[0] else " (high)" if value > bounds[1] else " (normal)"
