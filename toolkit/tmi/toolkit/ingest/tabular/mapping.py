"""Mapping file of `tmi import --table`: assigns the columns of a spreadsheet to ids, clinical fields, label and files.

The file is YAML or JSON of schema `tmi-mapping/1`; it is data and is never evaluated. `docs/import-table.md` documents
it, and `docs/examples/` holds examples::

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

Validation is strict and precedes the first row: an unknown or duplicate key, a field or unit that the clinical schema
does not define, and a number without a unit are errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tmi.toolkit.cases.case import unopened_error
from tmi.toolkit.clinical.schema import Field, Schema, load_schema
from tmi.toolkit.errors import UsageError
from tmi.toolkit.ingest.tabular.cells import Number, cell_number
from tmi.toolkit.storage.bounded_files import RECORD_BYTES, YAML_BYTES, is_access_error, read_bytes
from tmi.toolkit.storage.documents import DocumentError, parse_yaml, read_document
from tmi.toolkit.storage.serialization import from_json

SCHEMA = "tmi-mapping/1"


def _require_distinct(values: dict[str, Any]) -> None:
    """Reject two codes that are one number (`1` and `01`) and stand for different values."""
    by_number: dict[Number, Any] = {}
    for code, value in values.items():
        number = cell_number(code, ".")
        _require(
            number is None or by_number.setdefault(number, value) == value,
            f"values names the number {code[:40]!r} twice, with different meanings",
            "name each number once: 1, 1.0 and 01 are the same code",
        )


def _require(holds: bool, what: str, fix: str) -> None:
    if not holds:
        raise UsageError(f"mapping: {what}", fix=fix)


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """Format of the table's cells."""

    missing: tuple[str | float, ...] = ()
    """Codes of a missing value, in addition to the empty cell."""
    decimal: Literal[".", ","] = "."
    """Decimal mark of numbers stored as text."""
    delimiter: Literal[",", ";", "\t", "|"] | None = None
    """Separator of a CSV file; None selects the one under which the header has the mapped columns."""
    encoding: str = "utf-8"
    """Encoding of a CSV file without a byte order mark."""
    sheet: str | None = None
    """Sheet of a workbook; None selects its only sheet."""


@dataclass(frozen=True, kw_only=True)
class IdSource:
    """Source of an id."""

    column: str
    """Column."""
    prefix: str = ""
    """Prefix added to the text of the cell."""


@dataclass(frozen=True, kw_only=True)
class FieldSource:
    """Source of a clinical field: a column, or one value for every row."""

    column: str | None = None
    """Column."""
    unit: str | None = None
    """Unit of the column; required for every number with a unit."""
    values: dict[str, str | float | None] = field(default_factory=dict)
    """Code -> value, for example `f: female`; null means missing. A choice accepts no other text."""
    missing: tuple[str | float, ...] = ()
    """Codes of a missing value in this column, in addition to those of the table."""
    decimal: Literal[".", ","] | None = None
    """Decimal mark of this column; None uses that of the table."""
    fixed: str | float | None = None
    """Value of every row."""

    def __post_init__(self) -> None:
        _require_distinct(self.values)
        _require(
            (self.column is None) != (self.fixed is None),
            "a field has both or neither of column and fixed",
            "give either a column, or one fixed value for every row",
        )
        _require(
            self.fixed is None or not (self.values or self.missing or self.decimal),
            "a fixed value has values, missing or decimal",
            "omit them: a fixed value is not read from the table",
        )


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """Source of free text."""

    column: str
    """Column."""


@dataclass(frozen=True, kw_only=True)
class DateSource:
    """Source of a date; of blood and CT dates only the distance in days is stored."""

    column: str
    """Column."""
    format: Literal["iso", "day-month-year", "month-day-year"] = "iso"
    """Order of the parts of a date stored as text; workbook dates are recognised in any case."""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Condition on a column; all tests that are given must hold."""

    column: str
    """Column."""
    one_of: tuple[str | float, ...] | None = None
    """The cell equals one of these codes."""
    not_one_of: tuple[str | float, ...] | None = None
    """The cell equals none of these codes."""
    above: float | None = None
    """The number in the cell is greater."""
    at_least: float | None = None
    """The number in the cell is greater or equal."""
    below: float | None = None
    """The number in the cell is less."""
    at_most: float | None = None
    """The number in the cell is less or equal."""

    @property
    def has_only_codes(self) -> bool:
        """Whether the condition tests codes alone, not a number."""
        return all(b is None for b in (self.above, self.at_least, self.below, self.at_most))

    def __post_init__(self) -> None:
        tests = (self.one_of, self.not_one_of, self.above, self.at_least, self.below, self.at_most)
        _require(
            any(t is not None for t in tests),
            f"a condition on {self.column!r} has no test",
            "give one_of, not_one_of, above, at_least, below or at_most",
        )


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Label, or reason for exclusion, of rows that meet all conditions."""

    when: tuple[Condition, ...]
    """Conditions, all of which must hold."""
    label: Literal["good", "bad"] | None = None
    """Label."""
    exclude: str | None = None
    """Reason for excluding the row."""

    def __post_init__(self) -> None:
        _require(
            (self.label is None) != (self.exclude is None) and bool(self.when),
            "a rule of the label needs conditions, and either label or exclude",
            "write {label: good or bad, when: [...]}, or {exclude: reason, when: [...]}",
        )


@dataclass(frozen=True, kw_only=True)
class LabelSource:
    """Source of the label: a column with a value map, or rules, of which the first that holds applies."""

    column: str | None = None
    """Column of the outcome."""
    values: dict[str, Literal["good", "bad", "exclude"]] = field(default_factory=dict)
    """Code -> label; `exclude` excludes the row with the reason `otherwise`. A row with any other text is excluded."""
    rules: tuple[Rule, ...] = ()
    """Rules, in order."""
    otherwise: str = "the mapping gives this row no label"
    """Reason for excluding a row that no rule applies to, or that a value excludes."""

    def __post_init__(self) -> None:
        _require_distinct(self.values)
        _require(
            (self.column is None) == (not self.values) and (self.column is None) != (not self.rules),
            "the label has both or neither of a column with values and rules",
            "give either column and values, or rules",
        )


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """Columns with the file paths of a row, relative to the table."""

    ct: str
    """Column of the CT: DICOM folder, NIfTI, NRRD or MHA."""
    mask: str | None = None
    """Column of the liver mask; an empty cell means no mask."""
    radiomics: str | None = None
    """Column of the radiomics table; an empty cell means no table."""
    series: str | None = None
    """Column of the series to select in a DICOM folder."""
    mask_label: str | int | tuple[str | int, ...] | None = None
    """Label of the liver in the masks, by number or name; several are joined (`"1,2"`, `[1, 2]`)."""
    roi: str | tuple[str, ...] | None = None
    """ROI name of the liver in RTSTRUCT masks; several are joined."""
    fixes: tuple[str, ...] = ()
    """Codes of the repairs to apply."""

    def __post_init__(self) -> None:
        _require(
            self.mask_label is None or self.roi is None,
            "images has both mask_label and roi",
            "give mask_label for label maps and SEG, or roi for RTSTRUCT",
        )


@dataclass(frozen=True, kw_only=True)
class Mapping:
    """Contents of a mapping file."""

    schema: str
    """Schema id of the file."""
    case_id: IdSource
    """Source of the case id."""
    fields: dict[str, FieldSource]
    """Clinical field -> its source."""
    patient_id: IdSource | None = None
    """Source of the patient id; None: each row is a separate patient with the case id as patient id."""
    table: TableSpec = TableSpec()
    """Format of the cells."""
    clinical_schema: str | None = None
    """File of the clinical schema, relative to the mapping; None: the packaged liver schema."""
    label: LabelSource | None = None
    """Source of the label; None: cases for prediction only."""
    report: TextSource | None = None
    """Free-text report."""
    blood_date: DateSource | None = None
    """Date of the blood sample."""
    ct_date: DateSource | None = None
    """Date of the CT, if the images do not contain it."""
    images: ImageSource | None = None
    """Image files of each row; None: clinical records only."""

    def columns(self) -> dict[str, str]:
        """Return column -> its first use, in the order of the mapping."""
        columns: dict[str, str] = {}
        for use, column in self._uses():
            columns.setdefault(column, use)
        return columns

    def _uses(self) -> Iterator[tuple[str, str]]:
        for use in ("case_id", "patient_id", "report", "blood_date", "ct_date"):
            source = getattr(self, use)
            if source is not None:
                yield use, source.column
        for name, field_source in self.fields.items():
            if field_source.column is not None:
                yield f"fields.{name}", field_source.column
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
    """Read a mapping and its clinical schema, and validate the mapping against the schema.

    Raises:
        UsageError: the file is missing or malformed, or uses a field, unit or choice that the schema does not define.
        UnavailableError: the file is YAML and PyYAML is not installed.
    """
    mapping = from_json(Mapping, _load(path), where=f"mapping {path.name}")
    _require(mapping.schema == SCHEMA, f"{path.name} has schema {mapping.schema[:40]!r}", f"write schema: {SCHEMA}")
    schema_file = None if mapping.clinical_schema is None else path.parent / mapping.clinical_schema
    schema = load_schema(schema_file)
    _require(bool(mapping.fields), f"{path.name} maps no field", "map at least one clinical field")
    for name, source in mapping.fields.items():
        schema_field = schema.by_name.get(name)
        if schema_field is None:
            raise UsageError(
                f"mapping {path.name}: the clinical schema {schema.name} has no field {name[:64]!r}",
                fix=f"name one of: {', '.join(schema.by_name)}; or extend the schema (docs/clinical.md)",
            )
        _check_field(schema_field, source, where=f"mapping {path.name}: fields.{name}")
    return mapping, schema


def _check_field(schema_field: Field, source: FieldSource, *, where: str) -> None:
    mapped = [source.fixed] if source.fixed is not None else list(source.values.values())
    if schema_field.choices is not None:
        invalid = [v for v in mapped if v is not None and v not in schema_field.choices]
        if invalid or source.unit is not None or source.decimal is not None:
            message = (
                f"{str(invalid[0])[:40]!r} is not one of its choices" if invalid else "a choice has no unit or decimal"
            )
            raise UsageError(f"{where}: {message}", fix=f"map to {', '.join(schema_field.choices)}; null for missing")
        return
    units = [schema_field.unit or "", *schema_field.accepted_units]
    if source.unit is None and schema_field.unit:
        raise UsageError(f"{where}: the unit is missing", fix=f"give the unit of the column: {', '.join(units)}")
    if source.unit is not None and source.unit not in units:
        raise UsageError(f"{where}: the schema does not accept the unit {source.unit[:40]!r}", fix=f"known: {units}")
    if any(isinstance(v, str) for v in mapped):
        raise UsageError(f"{where}: a value is not a number", fix="map to numbers in the given unit; null for missing")


def _load(path: Path) -> Any:
    if not path.exists():
        raise UsageError(f"mapping {path} does not exist", fix="give a YAML or JSON file")
    try:
        if path.suffix.lower() == ".json":
            data = read_document(path, max_bytes=RECORD_BYTES)
        else:
            data = parse_yaml(read_bytes(path, max_bytes=YAML_BYTES))
        if not isinstance(data, dict):
            raise DocumentError("is not a mapping of keys to values")
        return data
    except (OSError, DocumentError) as error:
        if is_access_error(error):
            raise unopened_error(path, error) from error
        reason = error.detail if isinstance(error, DocumentError) else error.strerror
        raise UsageError(
            f"mapping {path} cannot be read as YAML or JSON: {reason}", fix="see the examples in docs/examples/"
        ) from error
