"""The mapping file of `tmi import --table`: which column of a hospital's table is what. Data, never evaluated.

YAML or JSON of the form `tmi-mapping/1`; `docs/import-table.md` explains it, `docs/examples/` holds some::

    schema: tmi-mapping/1
    table: {missing: [NA, "-9"], decimal: ","}
    case_id: {column: id, prefix: pbc-}
    fields:
      sex: {column: sex, values: {f: female, m: male}}
      total_bilirubin: {column: bili, unit: mg/dL}
      aetiology: {fixed: primary biliary cholangitis}
    label:
      rules:
        - {label: bad, when: [{column: status, one_of: ["1", "2"]}, {column: time, at_most: 730}]}
        - {label: good, when: [{column: time, above: 730}]}
      otherwise: followed for less than two years

Strict: an unknown key, a key twice, a field the clinical schema lacks, a unit it does not accept or a number without a
unit is refused before a row is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tmi.toolkit.clinical.schema import Field, Schema, load_schema
from tmi.toolkit.errors import UnavailableError, UsageError
from tmi.toolkit.storage.serialization import from_json

SCHEMA = "tmi-mapping/1"
MAX_BYTES = 2**20
"""A larger file is no mapping."""


def _require(holds: bool, what: str, fix: str) -> None:
    if not holds:
        raise UsageError(f"mapping: {what}", fix=fix)


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """How the table's cells are read."""

    missing: tuple[str | float, ...] = ()
    """Texts that stand for a missing value, besides the empty cell."""
    decimal: Literal[".", ","] = "."
    """Decimal mark of numbers that are written as text."""
    delimiter: Literal[",", ";", "\t", "|"] | None = None
    """Separator of a CSV file; None: the one that gives the columns the mapping names."""
    encoding: str = "utf-8"
    """Encoding of a CSV file without a byte order mark."""
    sheet: str | None = None
    """Sheet of a workbook; None: its only one."""


@dataclass(frozen=True, kw_only=True)
class IdSource:
    """An id from a column."""

    column: str
    """Column."""
    prefix: str = ""
    """Put before the cell's text."""


@dataclass(frozen=True, kw_only=True)
class FieldSource:
    """A clinical field's value: from a column, or the same for every row."""

    column: str | None = None
    """Column."""
    unit: str | None = None
    """Unit the column is in; to be named for every number."""
    values: dict[str, str | float | None] = field(default_factory=dict)
    """What a cell's text means, for example `f: female`; null: missing. Other texts are refused for a choice."""
    missing: tuple[str | float, ...] = ()
    """Texts that stand for a missing value in this column, besides the table's."""
    decimal: Literal[".", ","] | None = None
    """Decimal mark of this column; None: the table's."""
    fixed: str | float | None = None
    """The value of every row."""

    def __post_init__(self) -> None:
        _require(
            (self.column is None) != (self.fixed is None),
            "a field has both or none of column and fixed",
            "give a field its column, or one fixed value for every row",
        )
        _require(
            self.fixed is None or not (self.values or self.missing or self.decimal),
            "a fixed value has values, missing or decimal",
            "leave them out: nothing is read for a fixed value",
        )


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """Free text from a column."""

    column: str
    """Column."""


@dataclass(frozen=True, kw_only=True)
class DateSource:
    """A date from a column; of blood and CT dates only the distance in days is kept."""

    column: str
    """Column."""
    format: Literal["iso", "day-month-year", "month-day-year"] = "iso"
    """Order of its parts where it is text; a workbook's own dates need none."""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What a column must hold; every test that is given must be met."""

    column: str
    """Column."""
    one_of: tuple[str | float, ...] | None = None
    """The cell's text is one of these."""
    not_one_of: tuple[str | float, ...] | None = None
    """The cell's text is none of these."""
    above: float | None = None
    """The cell's number is greater."""
    at_least: float | None = None
    """The cell's number is greater or equal."""
    below: float | None = None
    """The cell's number is less."""
    at_most: float | None = None
    """The cell's number is less or equal."""

    def __post_init__(self) -> None:
        tests = (self.one_of, self.not_one_of, self.above, self.at_least, self.below, self.at_most)
        _require(
            any(t is not None for t in tests),
            f"a condition on {self.column!r} tests nothing",
            "give one_of, not_one_of, above, at_least, below or at_most",
        )


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A label, or a reason to leave the row out, for rows that meet every condition."""

    when: tuple[Condition, ...]
    """Conditions, all of which must hold."""
    label: Literal["good", "bad"] | None = None
    """The label."""
    exclude: str | None = None
    """Why the row is left out."""

    def __post_init__(self) -> None:
        _require(
            (self.label is None) != (self.exclude is None) and bool(self.when),
            "a rule of the label needs conditions, and either label or exclude",
            "write {label: good or bad, when: [...]}, or {exclude: reason, when: [...]}",
        )


@dataclass(frozen=True, kw_only=True)
class LabelSource:
    """Where the label comes from: a column with a value map, or rules of which the first that holds is taken."""

    column: str | None = None
    """Column that holds the outcome."""
    values: dict[str, Literal["good", "bad"]] = field(default_factory=dict)
    """What its cells mean; a cell that is not listed leaves its row out."""
    rules: tuple[Rule, ...] = ()
    """Rules, in order."""
    otherwise: str = "the mapping gives this row no label"
    """Why a row for which nothing holds is left out."""

    def __post_init__(self) -> None:
        _require(
            (self.column is None) == (not self.values) and (self.column is None) != (not self.rules),
            "the label has both or none of a column with values and rules",
            "give column and values, or rules",
        )


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """Columns with the paths of a row's files, relative to the table."""

    ct: str
    """Column with the CT: DICOM folder, NIfTI, NRRD or MHA."""
    mask: str | None = None
    """Column with the liver mask; an empty cell: none."""
    radiomics: str | None = None
    """Column with the radiomics table; an empty cell: none."""
    series: str | None = None
    """Column with the series to take from a DICOM folder."""
    mask_label: str | int | None = None
    """Label of the liver in the masks, by number or name."""
    roi: str | None = None
    """Name of the liver in RTSTRUCT masks."""
    fixes: tuple[str, ...] = ()
    """Repairs to make, by the code of their check."""

    def __post_init__(self) -> None:
        _require(
            self.mask_label is None or self.roi is None,
            "images has both mask_label and roi",
            "give the one that the masks need",
        )


@dataclass(frozen=True, kw_only=True)
class Mapping:
    """A whole mapping."""

    schema: str
    """Form of the file."""
    case_id: IdSource
    """Name of each row's case."""
    fields: dict[str, FieldSource]
    """Clinical field -> its source."""
    patient_id: IdSource | None = None
    """The row's patient; None: each row is a patient of its own, named like its case."""
    table: TableSpec = TableSpec()
    """How cells are read."""
    clinical_schema: str | None = None
    """A clinical schema's file, relative to the mapping; None: the packaged one of the liver."""
    label: LabelSource | None = None
    """The outcome; None: records only, for prediction."""
    report: TextSource | None = None
    """Free text."""
    blood_date: DateSource | None = None
    """Date of the blood sample."""
    ct_date: DateSource | None = None
    """Date of the CT, where the images do not tell it."""
    images: ImageSource | None = None
    """Files of each row; None: clinical records only."""

    def columns(self) -> dict[str, str]:
        """Column -> what it is used for first, in the order of the mapping."""
        found: dict[str, str] = {}
        for use, column in self._uses():
            found.setdefault(column, use)
        return found

    def _uses(self) -> Iterator[tuple[str, str]]:
        for use in ("case_id", "patient_id", "report", "blood_date", "ct_date"):
            source = getattr(self, use)
            if source is not None:
                yield use, source.column
        for name, one in self.fields.items():
            if one.column is not None:
                yield f"fields.{name}", one.column
        if self.label is not None:
            if self.label.column is not None:
                yield "label", self.label.column
            yield from (("label", c.column) for rule in self.label.rules for c in rule.when)
        if self.images is not None:
            for use in ("ct", "mask", "radiomics", "series"):
                column = getattr(self.images, use)
                if column is not None:
                    yield f"images.{use}", column


def read_mapping(path: Path) -> tuple[Mapping, Schema]:
    """The mapping and the clinical schema that it fills, checked against each other.

    Raises:
        UsageError: missing, malformed, or asking for a field, unit or choice that the schema lacks.
        UnavailableError: YAML cannot be read because PyYAML is not installed.
    """
    mapping = from_json(Mapping, _load(path), where=f"mapping {path.name}")
    _require(mapping.schema == SCHEMA, f"{path.name} has schema {mapping.schema[:40]!r}", f"write schema: {SCHEMA}")
    own = None if mapping.clinical_schema is None else path.parent / mapping.clinical_schema
    schema = load_schema(own)
    _require(bool(mapping.fields), f"{path.name} maps no field", "give at least one clinical field its column")
    for name, source in mapping.fields.items():
        known = schema.by_name.get(name)
        if known is None:
            raise UsageError(
                f"mapping {path.name}: the clinical schema {schema.name} has no field {name[:64]!r}",
                fix=f"name one of: {', '.join(schema.by_name)}; or extend the schema (docs/clinical.md)",
            )
        _check_field(known, source, where=f"mapping {path.name}: fields.{name}")
    return mapping, schema


def _check_field(known: Field, source: FieldSource, *, where: str) -> None:
    if known.choices is not None:
        words = [source.fixed] if source.fixed is not None else list(source.values.values())
        strange = [w for w in words if w is not None and w not in known.choices]
        if strange or source.unit is not None or source.decimal is not None:
            what = f"{str(strange[0])[:40]!r} is none of its choices" if strange else "a word has no unit or decimal"
            raise UsageError(f"{where}: {what}", fix=f"map to {', '.join(known.choices)}; null for missing")
        return
    units = [known.unit or "", *known.accepted_units]
    if source.unit is None and known.unit:
        raise UsageError(f"{where}: the unit is not named", fix=f"name the unit it is in: {', '.join(units)}")
    if source.unit is not None and source.unit not in units:
        raise UsageError(f"{where}: the schema does not accept the unit {source.unit[:40]!r}", fix=f"known: {units}")
    numbers = [source.fixed] if source.fixed is not None else list(source.values.values())
    if any(isinstance(n, str) for n in numbers):
        raise UsageError(f"{where}: a value is no number", fix="map to numbers in the unit named; null for missing")


def _load(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"mapping {path} is not there", fix="give a YAML or JSON file")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError("too large")
        text = path.read_text(encoding="utf-8-sig")
        found = (
            json.loads(text, object_pairs_hook=_reject_duplicate_keys)
            if path.suffix.lower() == ".json"
            else _yaml(text)
        )
        if not isinstance(found, dict):
            raise _MalformedError("it is no mapping of keys to values")
        return found
    except (OSError, ValueError, RecursionError) as error:
        detail = f": {error}" if isinstance(error, _MalformedError) else ""
        raise UsageError(
            f"mapping {path} cannot be read as YAML or JSON{detail}", fix="write it like those in docs/examples/"
        ) from error


class _MalformedError(ValueError):
    """A mapping that a lenient reader would take, and get wrong."""


def _reject_duplicate_keys(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    """A mapping's pairs; a key twice would silently lose the first."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if isinstance(key, bool) or not isinstance(key, (str, int, float)):
            raise _MalformedError(f"the key {str(key)[:40]!r} is no text; put it into quotes")
        if str(key) in found:
            raise _MalformedError(f"the key {str(key)[:40]!r} is there twice")
        found[str(key)] = value
    return found


def _yaml(text: str) -> Any:
    """YAML as plain values; tags, anchors and keys given twice are refused."""
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise UnavailableError(
            "a mapping in YAML needs PyYAML, which is not installed", fix="pip install 'tmi-clnet[dicom]'"
        ) from error

    class Loader(yaml.SafeLoader):
        """Safe, and strict about what YAML lets pass."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise _MalformedError("it uses an alias (*)")
            return super().compose_node(parent, index)

    def pairs(loader: Loader, node: Any) -> dict[str, Any]:
        return _reject_duplicate_keys(loader.construct_pairs(node, deep=True))

    Loader.add_constructor("tag:yaml.org,2002:map", pairs)
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise _MalformedError("" if mark is None else f"line {mark.line + 1}") from error
