"""The clinical schema: which fields a record may hold, in which units, and what is plausible. Data, in one file.

The packaged file `data/liver_schema.json` holds the paper's fields: 3 basic ones (and 3 optional), 23 blood items, 16
of the fat analysis. A schema for another disease is another file of the same form; no code changes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from tmi.toolkit.config_io import from_json
from tmi.toolkit.errors import UsageError
from tmi.toolkit.hashing import sha256_json

SCHEMA = "tmi-clinical-schema/1"


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """From an accepted unit to the field's own: value * factor + offset."""

    factor: float
    """Multiplier."""
    offset: float = 0.0
    """Added after the multiplication."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """One clinical field: a number with a unit, or one of a list of words."""

    name: str
    """Key in clinical.json."""
    label: str
    """How the text names it."""
    section: str
    """Section of the text it stands in."""
    unit: str | None = None
    """Unit of a number; None for a choice."""
    accepted_units: dict[str, Conversion] = field(default_factory=dict)
    """Other units a value may be given in, and how each is converted."""
    choices: tuple[str, ...] | None = None
    """The words a choice may be; None for a number."""
    plausible: tuple[float, float] | None = None
    """Range, in `unit`, outside which a value is taken for a mistake."""
    reference: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Reference range by sex, in `unit`."""
    optional: bool = False
    """Left out of the text when missing, instead of being said to be missing."""

    def __post_init__(self) -> None:
        if (self.unit is None) == (self.choices is None):
            raise UsageError(
                f"schema field {self.name!r}: give either a unit or choices",
                fix="a number has a unit ('' where it has none), a word has choices",
            )


@dataclass(frozen=True, kw_only=True)
class Schema:
    """A named, versioned list of fields."""

    schema: str
    """Form of the file."""
    name: str
    """Name of the schema."""
    version: str
    """Its version."""
    sections: tuple[str, ...]
    """Sections in the order of the text."""
    fields: tuple[Field, ...]
    """Fields in the order of the text."""

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise UsageError(f"clinical schema {self.schema!r}", fix=f"this version reads {SCHEMA!r}")
        names = [f.name for f in self.fields]
        twice = sorted({n for n in names if names.count(n) > 1})
        homeless = sorted({f.section for f in self.fields} - set(self.sections))
        if twice or homeless:
            raise UsageError(
                f"clinical schema {self.name}: {'field ' + twice[0] + ' twice' if twice else ''}"
                f"{'unknown section ' + homeless[0] if homeless else ''}",
                fix="name each field once, in a section of the list",
            )

    @property
    def by_name(self) -> Mapping[str, Field]:
        """Fields by name."""
        return {f.name: f for f in self.fields}

    @property
    def digest(self) -> str:
        """SHA-256 of the schema's content."""
        from tmi.toolkit.config_io import to_json

        return sha256_json(to_json(self))


def parse_schema(data: Any, *, where: str) -> Schema:
    """A schema from JSON values, strictly.

    Raises:
        UsageError: it is malformed; `where` is named in the text.
    """
    if not isinstance(data, Mapping):
        raise UsageError(f"{where} is no clinical schema", fix="write it like the packaged liver_schema.json")
    return from_json(Schema, data, where=where)


def load_schema(path: Path | None = None) -> Schema:
    """The packaged liver schema, or a user's own file.

    Raises:
        UsageError: the file is missing or malformed.
    """
    if path is None:
        return _packaged()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"clinical schema {path} cannot be read as JSON", fix="see docs/clinical.md") from error
    return parse_schema(data, where=path.name)


@cache
def _packaged() -> Schema:
    text = (files("tmi.toolkit") / "data" / "liver_schema.json").read_text(encoding="utf-8")
    return parse_schema(json.loads(text), where="liver_schema.json")


def convert(schema_field: Field, value: float, unit: str | None) -> float | None:
    """`value` in the field's own unit, or None where the unit is not accepted."""
    if unit is None or unit == schema_field.unit:
        return value
    conversion = schema_field.accepted_units.get(unit)
    return None if conversion is None else value * conversion.factor + conversion.offset


def plausible(schema_field: Field, value: float) -> bool:
    """Whether a value in the field's own unit lies in the plausible range."""
    if schema_field.plausible is None:
        return math.isfinite(value)
    return schema_field.plausible[0] <= value <= schema_field.plausible[1]
