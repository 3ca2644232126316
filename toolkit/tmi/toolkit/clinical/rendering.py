"""Renders a clinical record as the input text of the text encoder, in named and versioned forms.

`compact`: short name and value alone, "ALB 38", the most important fields first; `values`: one sentence for each field,
"Albumin: 38 g/L."; `flags`: the same with low, normal or high according to the reference range of the patient's sex;
`pairs` (as in the released code): name and value, "Albumin: 38". A missing field is rendered as missing, and a missing
optional field is omitted. A free-text report is appended unchanged.

A complete record of the liver schema has at most 302 tokens of BERT's cased vocabulary in `compact`, up to 660 in
`values` and 738 in `flags`. The text encoder takes 512.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from tmi.toolkit.clinical.record import ClinicalRecord, Value
from tmi.toolkit.clinical.schema import ANY_SEX, Field, Schema
from tmi.toolkit.errors import DamagedError

Rendering = Literal["compact", "values", "flags", "pairs"]
RENDERING_VERSIONS: Mapping[str, int] = MappingProxyType({"compact": 1, "values": 1, "flags": 1, "pairs": 1})
"""Version of each rendering; it is increased whenever the text of any record changes."""


def render(record: ClinicalRecord, schema: Schema, rendering: Rendering) -> str:
    """Text of a record, with the fields in the schema's order; `compact` uses its order of importance."""
    return " ".join(sentence for _, sentence in sentences(record, schema, rendering))


def sentences(record: ClinicalRecord, schema: Schema, rendering: Rendering) -> list[tuple[str | None, str]]:
    """The pieces that `render` joins with single spaces, as (field name, text); the name of the report is None."""
    sex = record.values.get("sex")
    pieces: list[tuple[str | None, str]] = []
    for field in schema.by_importance if rendering == "compact" else schema.fields:
        value = record.values.get(field.name)
        if value is None and field.optional:
            continue
        if rendering == "compact":
            pieces.append((field.name, f"{field.short or field.label} {_value(value)}"))
            continue
        if rendering == "pairs":
            pieces.append((field.name, f"{field.label}: {_value(value)}"))
            continue
        unit = f" {field.unit}" if isinstance(value, float) and field.unit else ""
        flag = _flag(field, value, sex) if rendering == "flags" else ""
        pieces.append((field.name, f"{field.label}: {_value(value)}{unit}{flag}."))
    if report := report_text(record):
        pieces.append((None, report))
    return pieces


def field_spans(pieces: Sequence[tuple[str | None, str]]) -> list[tuple[str | None, int, int]]:
    """Spans of the pieces in the rendered text: name, first character, one past the last."""
    spans: list[tuple[str | None, int, int]] = []
    start = 0
    for name, piece in pieces:
        spans.append((name, start, start + len(piece)))
        start += len(piece) + 1  # the pieces are joined by one space
    return spans


def report_text(record: ClinicalRecord) -> str:
    """The free-text report as it ends the rendered text; empty if the record has none."""
    return (record.report or "").strip()


def require_rendering(rendering: str, version: int | None, *, kind: str) -> None:
    """Check that this version of the package renders the text on which the models were trained.

    Args:
        rendering: name of the rendering.
        version: version of the rendering at training time.
        kind: `run` or `bundle`, for the error message.

    Raises:
        DamagedError: the rendering is unknown or has another version.
    """
    current = RENDERING_VERSIONS.get(rendering)
    if current is None or current != version:
        raise DamagedError(
            f"{kind}: its models were trained on clinical text {rendering!r} version {version}; "
            f"this tmi writes version {current}",
            fix=f"use the tmi version that made the {kind}, or train again with this one",
        )


def _value(value: Value) -> str:
    if value is None:
        return "missing"
    if isinstance(value, str):
        return value
    # from 9999.5 on, the format .4g would use an exponent
    return f"{value:.4g}" if abs(value) < 9999.5 else f"{value:.0f}"


def _flag(field: Field, value: Value, sex: Value) -> str:
    """Suffix by reference range; empty if the field has none or it depends on an unknown sex."""
    if not isinstance(value, float):
        return ""
    ranges = field.reference
    bounds = ranges.get(sex, ranges.get(ANY_SEX)) if isinstance(sex, str) else ranges.get(ANY_SEX)
    if bounds is None and len(set(ranges.values())) == 1:
        bounds = next(iter(ranges.values()))  # both sexes have the same range
    if bounds is None:
        return ""
    return " (low)" if value < bounds[0] else " (high)" if value > bounds[1] else " (normal)"
