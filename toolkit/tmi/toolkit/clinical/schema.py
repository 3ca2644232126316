"""The clinical schema: which fields a record may hold, in which units, and what is plausible. Data, in one file.

The packaged file `data/liver_schema.json` holds the paper's fields: 3 basic ones (and 3 optional), 23 blood items, 16
of the fat analysis. A schema for another disease is another file of the same form; no code changes. A file that says
`"extends": "liver"` holds what differs alone: fields that are added, or that replace the one of their name, further
sections, and in `without` the names of fields to leave out.

The schema that a run was trained with travels, resolved, as `clinical_schema.json` in the run and in the bundle.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.storage.atomic_files import read_json, write_json
from tmi.toolkit.storage.hashing import sha256_json
from tmi.toolkit.storage.serialization import from_json, to_json

SCHEMA = "tmi-clinical-schema/1"
SCHEMA_FILE = "clinical_schema.json"
"""Name of the schema in a run and in a bundle."""
PACKAGED = "liver"
"""The schema that comes with the package; what a user's file may extend."""
ANY_SEX = "all"
"""Key of a reference range that holds whatever the sex."""
MAX_BYTES = 4 * 2**20
"""A larger file is no schema."""
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
"""Form of a field's name."""


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
    """Reference range by sex (`female`, `male`, or `all` for both), in `unit`."""
    optional: bool = False
    """Left out of the text when missing, instead of being said to be missing."""

    def __post_init__(self) -> None:
        self._require(
            NAME.fullmatch(self.name) is not None, "its name is no plain name", "write a-z, 0-9 and _, at most 64"
        )
        self._require(bool(self.label.strip()) and self.label.isprintable(), "its label is empty", "give a label")
        self._require(
            (self.unit is None) != (self.choices is None),
            "give either a unit or choices",
            "a number has a unit ('' where it has none), a word has choices",
        )
        if self.choices is not None:
            self._require(
                bool(self.choices) and len(set(self.choices)) == len(self.choices) and all(self.choices),
                "a choice is empty or there twice",
                "give each choice once",
            )
            self._require(
                not (self.accepted_units or self.reference or self.plausible),
                "a word has neither units nor ranges",
                "leave accepted_units, plausible and reference out",
            )
        for low, high in (*self.reference.values(), *([self.plausible] if self.plausible else [])):
            self._require(low < high, "a range's lower end is not below its upper end", "give the lower end first")
        self._require(
            set(self.reference) <= {"female", "male", ANY_SEX},
            "a reference range of an unknown sex",
            f"name female, male, or {ANY_SEX} for both",
        )
        self._require(
            self.unit not in self.accepted_units and all(c.factor != 0 for c in self.accepted_units.values()),
            "an accepted unit is its own unit, or has the factor 0",
            "list the other units only, value * factor + offset giving the field's own",
        )

    def _require(self, holds: bool, what: str, fix: str) -> None:
        if not holds:
            raise UsageError(f"schema field {self.name[:64]!r}: {what}", fix=fix)


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
        places = [self.sections.index(f.section) for f in self.fields]
        if places != sorted(places) or len(set(self.sections)) != len(self.sections):
            raise UsageError(
                f"clinical schema {self.name}: its fields do not stand section by section",
                fix="keep the fields of a section together, in the order of the sections",
            )
        if not self.fields or not self.name.strip():
            raise UsageError("clinical schema without a name or a field", fix="give a name and at least one field")

    @property
    def by_name(self) -> Mapping[str, Field]:
        """Fields by name."""
        return {f.name: f for f in self.fields}

    @property
    def digest(self) -> str:
        """SHA-256 of the schema's content: of the bytes of `clinical_schema.json`."""
        return sha256_json(to_json(self))


def parse_schema(data: Any, *, where: str) -> Schema:
    """A schema from JSON values, strictly; what it extends is filled in.

    Raises:
        UsageError: it is malformed; `where` is named in the text.
    """
    if not isinstance(data, Mapping):
        raise UsageError(f"{where} is no clinical schema", fix="write it like the packaged liver_schema.json")
    return from_json(Schema, _extended(data, where) if "extends" in data else data, where=where)


def _extended(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The packaged schema with a user's changes, as JSON values."""
    if data["extends"] != PACKAGED:
        raise UsageError(
            f"{where}: no schema {str(data['extends'])[:40]!r} to extend", fix=f'write "extends": "{PACKAGED}"'
        )
    own, without = data.get("fields", []), data.get("without", [])
    if not isinstance(own, list) or not all(isinstance(f, Mapping) and isinstance(f.get("name"), str) for f in own):
        raise UsageError(f"{where}: fields is no list of fields", fix="write it like the packaged liver_schema.json")
    base = to_json(_packaged())
    names = [f["name"] for f in base["fields"]]
    if not isinstance(without, list) or not set(map(str, without)) <= set(names):
        raise UsageError(
            f"{where}: without names a field that the schema {PACKAGED} lacks",
            fix=f"name fields of {PACKAGED}; see docs/clinical.md",
        )
    replacing = {f["name"]: f for f in own if f["name"] in names}
    kept = [replacing.get(n, f) for n, f in zip(names, base["fields"], strict=True) if n not in without]
    added = [f for f in own if f["name"] not in names]
    more = data.get("sections", [])
    if not isinstance(more, list):
        raise UsageError(
            f"{where}: sections is no list", fix=f"list the sections that {PACKAGED} lacks, or leave it out"
        )
    sections = [*base["sections"], *more]
    fields = sorted(
        [*kept, *added], key=lambda f: sections.index(f.get("section")) if f.get("section") in sections else 0
    )
    rest = {k: v for k, v in data.items() if k not in ("extends", "without")}
    return rest | {"sections": sections, "fields": fields}


def load_schema(path: Path | None = None) -> Schema:
    """The packaged liver schema, or a user's own file.

    Raises:
        UsageError: the file is missing or malformed.
    """
    if path is None:
        return _packaged()
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError("too large")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"clinical schema {path} cannot be read as JSON", fix="see docs/clinical.md") from error
    return parse_schema(data, where=path.name)


@cache
def _packaged() -> Schema:
    text = (files("tmi.toolkit.clinical") / "data" / "liver_schema.json").read_text(encoding="utf-8")
    return parse_schema(json.loads(text), where="liver_schema.json")


def store_schema(folder: Path, schema: Schema) -> None:
    """Write the schema into a run or bundle, resolved and in canonical form."""
    write_json(folder / SCHEMA_FILE, to_json(schema))


def stored_schema(folder: Path, *, kind: str) -> Schema:
    """The schema that a run or bundle carries.

    Args:
        folder: the run's or the bundle's.
        kind: `run` or `bundle`, for the error text.

    Raises:
        DamagedError: missing or malformed.
    """
    try:
        return from_json(Schema, read_json(folder / SCHEMA_FILE, kind=kind), where=SCHEMA_FILE)
    except UsageError as error:
        raise DamagedError(f"{kind} {folder}: {error.what}", fix=f"make the {kind} again") from error


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
