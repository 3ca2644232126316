"""Clinical schema: the fields of a record with their units, plausible ranges and reference ranges, read from JSON.

The packaged file `data/liver_schema.json` defines the paper's fields: 3 basic ones (and 3 optional), 23 blood items, 16
of the fat analysis; and 8 optional ones of hepatology. A schema for another disease is another file of the same form
and needs no code changes. A file with `"extends": "liver"` contains only the differences: added fields, fields that
replace the one of the same name, further sections, and in `without` the names of fields to omit.

The resolved schema of a training is stored as `clinical_schema.json` in the run and in the bundle.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from tmi.toolkit.cases.case import unopened_error
from tmi.toolkit.clinical.unit_spelling import spelled_units
from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.storage.atomic_files import read_json, write_json
from tmi.toolkit.storage.bounded_files import RECORD_BYTES, is_access_error
from tmi.toolkit.storage.documents import DocumentError, read_document
from tmi.toolkit.storage.hashing import sha256_json
from tmi.toolkit.storage.serialization import from_json, to_json

SCHEMA = "tmi-clinical-schema/1"
SCHEMA_FILE = "clinical_schema.json"
"""File name of the schema in a run and in a bundle."""
PACKAGED = "liver"
"""Name of the packaged schema, which other schemas can extend."""
ANY_SEX = "all"
"""Key of a reference range for both sexes."""
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
"""Pattern of a field name."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """Conversion from an accepted unit to the field's own: value * factor + offset."""

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
    """Name in the rendered text."""
    section: str
    """Section of the rendered text."""
    unit: str | None = None
    """Unit of a number; None for a choice."""
    accepted_units: dict[str, Conversion] = field(default_factory=dict)
    """Other accepted units and their conversions."""
    choices: tuple[str, ...] | None = None
    """Allowed words of a choice; None for a number."""
    plausible: tuple[float, float] | None = None
    """Range in `unit`; values outside are rejected as mistakes."""
    reference: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Reference range in `unit` by sex (`female`, `male`, or `all` for both)."""
    optional: bool = False
    """Omitted from the text if missing, instead of being rendered as missing."""
    short: str | None = None
    """Name in the rendering `compact`; None: the label."""

    def __post_init__(self) -> None:
        self._require(
            NAME.fullmatch(self.name) is not None,
            "its name is not a valid field name",
            "start with a letter and use only a-z, 0-9 and _, at most 64 characters",
        )
        self._require(bool(self.label.strip()) and self.label.isprintable(), "its label is empty", "give a label")
        self._require(
            self.short is None or (bool(self.short.strip()) and self.short.isprintable()),
            "its short name is empty",
            "give a short name, or omit it",
        )
        self._require(
            (self.unit is None) != (self.choices is None),
            "give either a unit or choices",
            "a number has a unit ('' if it is dimensionless), a word has choices",
        )
        if self.choices is not None:
            self._require(
                bool(self.choices) and len(set(self.choices)) == len(self.choices) and all(self.choices),
                "a choice is empty or duplicated",
                "give each choice once",
            )
            self._require(
                not (self.accepted_units or self.reference or self.plausible),
                "a field with choices has units or ranges",
                "omit accepted_units, plausible and reference",
            )
        for low, high in (*self.reference.values(), *([self.plausible] if self.plausible else [])):
            self._require(low < high, "a range's lower end is not below its upper end", "give the lower end first")
        self._require(
            set(self.reference) <= {"female", "male", ANY_SEX},
            "a reference range is of an unknown sex",
            f"use female, male, or {ANY_SEX} for both",
        )
        self._require(
            self.unit not in self.accepted_units and all(c.factor != 0 for c in self.accepted_units.values()),
            "an accepted unit is its own unit, or has the factor 0",
            "list only other units, with value * factor + offset in the field's own unit",
        )

    def _require(self, condition: bool, what: str, fix: str) -> None:
        if not condition:
            raise UsageError(f"schema field {self.name[:64]!r}: {what}", fix=fix)


@dataclass(frozen=True, kw_only=True)
class Schema:
    """A named, versioned list of fields."""

    schema: str
    """Schema id of the file format."""
    name: str
    """Name of the clinical schema."""
    version: str
    """Version of the clinical schema."""
    sections: tuple[str, ...]
    """Sections in the order of the text."""
    fields: tuple[Field, ...]
    """Fields in the order of the text."""
    importance: tuple[str, ...] = ()
    """Names of the fields that come first in the rendering `compact`, the most important first."""

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise UsageError(f"clinical schema {self.schema!r}", fix=f"this version reads {SCHEMA!r}")
        names = [f.name for f in self.fields]
        duplicates = sorted({n for n in names if names.count(n) > 1})
        unknown = sorted({f.section for f in self.fields} - set(self.sections))
        if duplicates or unknown:
            mistakes = [
                *(f"duplicate field {n}" for n in duplicates[:1]),
                *(f"unknown section {s}" for s in unknown[:1]),
            ]
            raise UsageError(
                f"clinical schema {self.name}: {', '.join(mistakes)}",
                fix="define each field once, in one of the sections",
            )
        order = [self.sections.index(f.section) for f in self.fields]
        if order != sorted(order) or len(set(self.sections)) != len(self.sections):
            raise UsageError(
                f"clinical schema {self.name}: its fields are not grouped by section",
                fix="list each section once, and its fields together in the order of the sections",
            )
        unranked = sorted(set(self.importance) - set(names))
        if unranked or len(set(self.importance)) != len(self.importance):
            raise UsageError(
                f"clinical schema {self.name}: importance names "
                + (f"the unknown field {unranked[0][:64]!r}" if unranked else "a field twice"),
                fix="name fields of the schema, each once",
            )
        if not self.fields or not self.name.strip():
            raise UsageError("clinical schema without a name or a field", fix="give a name and at least one field")

    @property
    def by_name(self) -> Mapping[str, Field]:
        """Name -> field."""
        return {f.name: f for f in self.fields}

    @property
    def by_importance(self) -> tuple[Field, ...]:
        """Fields in the order of the rendering `compact`: those of `importance`, then the others in their order."""
        rank = {name: i for i, name in enumerate(self.importance)}
        return tuple(sorted(self.fields, key=lambda f: rank.get(f.name, len(rank))))

    @property
    def digest(self) -> str:
        """SHA-256 of the content, equal to that of the file `clinical_schema.json`."""
        return sha256_json(_content(self))


def _content(schema: Schema) -> dict[str, Any]:
    """JSON values of a schema. Keys of the rendering `compact` are omitted if unset, as earlier versions have none."""
    content = to_json(schema)
    for entry in content["fields"]:
        if entry["short"] is None:
            del entry["short"]
    if not content["importance"]:
        del content["importance"]
    return content


def parse_schema(data: Any, *, where: str) -> Schema:
    """Parse a schema strictly from JSON values and resolve `extends`.

    Raises:
        UsageError: the schema is malformed; the message names `where`.
    """
    if not isinstance(data, Mapping):
        raise UsageError(f"{where} is not a clinical schema", fix="follow the packaged liver_schema.json")
    return from_json(Schema, _extend_packaged(data, where) if "extends" in data else data, where=where)


def _extend_packaged(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Apply a user's changes to the packaged schema; returns JSON values."""
    if data["extends"] != PACKAGED:
        raise UsageError(
            f"{where}: no schema {str(data['extends'])[:40]!r} to extend", fix=f'write "extends": "{PACKAGED}"'
        )
    own, without = data.get("fields", []), data.get("without", [])
    if not isinstance(own, list) or not all(isinstance(f, Mapping) and isinstance(f.get("name"), str) for f in own):
        raise UsageError(f"{where}: fields is not a list of fields", fix="follow the packaged liver_schema.json")
    base = to_json(_packaged())
    names = [f["name"] for f in base["fields"]]
    if not isinstance(without, list) or not set(map(str, without)) <= set(names):
        raise UsageError(
            f"{where}: without is not a list of fields of the schema {PACKAGED}",
            fix=f"use the field names of {PACKAGED}; see docs/clinical.md",
        )
    own_names = [f["name"] for f in own]
    if repeated := sorted({n for n in own_names if own_names.count(n) > 1}):
        raise UsageError(f"{where}: duplicate field {repeated[0][:64]}", fix="define each field once")
    replacing = {f["name"]: f for f in own if f["name"] in names}
    remaining = [replacing.get(n, f) for n, f in zip(names, base["fields"], strict=True) if n not in without]
    added = [f for f in own if f["name"] not in names]
    further = data.get("sections", [])
    if not isinstance(further, list):
        raise UsageError(
            f"{where}: sections is not a list", fix=f"list the sections that are not in {PACKAGED}, or omit the key"
        )
    sections = [*base["sections"], *further]
    # stable sort: added fields come last in their section; an unknown section is reported by Schema
    fields = sorted(
        [*remaining, *added], key=lambda f: sections.index(f.get("section")) if f.get("section") in sections else 0
    )
    rest = {k: v for k, v in data.items() if k not in ("extends", "without")}
    importance = [name for name in base["importance"] if name not in without]
    return {"importance": importance} | rest | {"sections": sections, "fields": fields}


def load_schema(path: Path | None = None) -> Schema:
    """Load a schema file; without a path, the packaged liver schema.

    Raises:
        UsageError: the file is missing or malformed.
    """
    if path is None:
        return _packaged()
    try:
        data = read_document(path, max_bytes=RECORD_BYTES)
    except (OSError, DocumentError) as error:
        if is_access_error(error) and not isinstance(error, FileNotFoundError):
            raise unopened_error(path, error) from error
        reason = error.detail if isinstance(error, DocumentError) else error.strerror
        raise UsageError(
            f"clinical schema {path} cannot be read as JSON: {reason}", fix="see docs/clinical.md"
        ) from error
    return parse_schema(data, where=path.name)


def find_schema(given: Path | None, project_file: Path | None, paths: Sequence[Path]) -> tuple[Schema, str | None]:
    """Return the schema of cohorts or cases, and a note if the project's setting is not used.

    The first that exists is used: the given file, the schema that a cohort keeps (`clinical_schema.json`, written by
    `tmi import --table`), the project's, the packaged one.

    Args:
        given: file of the option `--schema`.
        project_file: file of the project's setting.
        paths: cohorts, or cases of cohorts.

    Raises:
        UsageError: a file is malformed, or two cohorts keep different schemas.
    """
    if given is not None:
        return load_schema(given), None
    default = load_schema(project_file)
    schemas: dict[str, tuple[Schema, Path]] = {}
    for path in paths:
        folders = (path, path.absolute().parent, path.resolve().parent)  # `.`, or a link, may be a case of a cohort
        file = next((f / SCHEMA_FILE for f in folders if _keeps_schema(f)), None)
        schema = default if file is None else load_schema(file)
        schemas.setdefault(schema.digest, (schema, path))
    if len(schemas) > 1:
        first, second = [path for _, path in schemas.values()][:2]
        raise UsageError(
            f"{first} and {second} have different clinical schemas", fix="name one with --schema, or use two commands"
        )
    schema, path = next(iter(schemas.values()), (default, Path()))
    if project_file is None or schema == default:
        return schema, None
    return schema, f"clinical schema: {schema.name}, which {path} keeps, not that of tmi.toml; --schema names another"


def _keeps_schema(folder: Path) -> bool:
    try:
        (folder / SCHEMA_FILE).lstat()
    except OSError:  # none; or no permission for the folder, which is reported when the case is read
        return False
    return True


@cache
def _packaged() -> Schema:
    text = (files("tmi.toolkit.clinical") / "data" / "liver_schema.json").read_text(encoding="utf-8")
    return parse_schema(json.loads(text), where="liver_schema.json")


def store_schema(folder: Path, schema: Schema) -> None:
    """Write the resolved schema into a run or bundle in canonical form."""
    write_json(folder / SCHEMA_FILE, _content(schema))


def stored_schema(folder: Path, *, kind: str, data: bytes | None = None) -> Schema:
    """Read the schema of a run or bundle.

    Args:
        folder: folder of the run or bundle.
        kind: `run` or `bundle`, for the error message.
        data: content of its `SCHEMA_FILE`, if the caller has read it; the file is then not opened.

    Raises:
        DamagedError: the file is missing or malformed.
    """
    try:
        return from_json(Schema, read_json(folder / SCHEMA_FILE, kind=kind, data=data), where=SCHEMA_FILE)
    except UsageError as error:
        raise DamagedError(f"{kind} {folder}: {error.what}", fix=f"make the {kind} again") from error


def convert(schema_field: Field, value: float, unit: str | None) -> float | None:
    """Convert `value` to the field's own unit; None if the unit is not accepted in any spelling (`accepted_unit`)."""
    name = schema_field.unit if unit is None else accepted_unit(schema_field, unit)
    if name == schema_field.unit:
        return value
    conversion = None if name is None else schema_field.accepted_units.get(name)
    return None if conversion is None else value * conversion.factor + conversion.offset


def accepted_unit(schema_field: Field, text: str) -> str | None:
    """Return the field's unit that a text spells, in any case and with either micro sign.

    None without one, or if the text spells several units of the field that convert differently (`mU/L`, `MU/L`).
    """
    own = {} if schema_field.unit is None else {schema_field.unit: Conversion(factor=1.0)}
    conversions = {**own, **schema_field.accepted_units}
    units = spelled_units(text, conversions)
    return units[0] if units and len({conversions[u] for u in units}) == 1 else None


def plausible(schema_field: Field, value: float) -> bool:
    """Whether a value in the field's own unit is in the plausible range, or finite if the field has none."""
    if schema_field.plausible is None:
        return math.isfinite(value)
    return schema_field.plausible[0] <= value <= schema_field.plausible[1]
