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
from typing import Any

from tmi.toolkit.cases.case import unopened_error
from tmi.toolkit.clinical.schema import Field, Schema, accepted_unit, load_schema
from tmi.toolkit.errors import UsageError
from tmi.toolkit.ingest.tabular.sources import (
    DateSource,
    FieldSource,
    IdSource,
    ImageSource,
    LabelSource,
    TableSpec,
    TextSource,
    require,
)
from tmi.toolkit.storage.bounded_files import RECORD_BYTES, YAML_BYTES, is_access_error, read_bytes
from tmi.toolkit.storage.documents import DocumentError, parse_yaml, read_document
from tmi.toolkit.storage.serialization import from_json

SCHEMA = "tmi-mapping/1"
ROW_PREFIX = "row-"
"""Prefix of the row's number as a case id."""


@dataclass(frozen=True, kw_only=True)
class Mapping:
    """Contents of a mapping file."""

    schema: str
    """Schema id of the file."""
    fields: dict[str, FieldSource]
    """Clinical field -> its source."""
    case_id: IdSource = field(default_factory=lambda: IdSource(prefix=ROW_PREFIX))
    """Source of the case id; by default the number of the row."""
    patient_id: IdSource | None = None
    """Source of the patient id; None: each row is a separate patient with the case id as patient id."""
    table: TableSpec = field(default_factory=TableSpec)
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
            if source is not None and source.column is not None:
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
    require(mapping.schema == SCHEMA, f"{path.name} has schema {mapping.schema[:40]!r}", f"write schema: {SCHEMA}")
    schema_file = None if mapping.clinical_schema is None else path.parent / mapping.clinical_schema
    schema = load_schema(schema_file)
    require(bool(mapping.fields), f"{path.name} maps no field", "map at least one clinical field")
    require(
        mapping.patient_id is None or mapping.patient_id.column is not None,
        f"{path.name} gives no column of the patient id",
        "name its column, or omit patient_id: each row is then a patient of its own",
    )
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
        has_number_keys = source.unit is not None or source.decimal is not None or source.other_units
        if invalid or has_number_keys or source.outside == "missing":
            message = (
                f"{str(invalid[0])[:40]!r} is not one of its choices"
                if invalid
                else "a choice has no unit, decimal, other_units or outside"
            )
            raise UsageError(f"{where}: {message}", fix=f"map to {', '.join(schema_field.choices)}; null for missing")
        return
    units = [schema_field.unit or "", *schema_field.accepted_units]
    if source.unit is None and schema_field.unit:
        raise UsageError(f"{where}: the unit is missing", fix=f"give the unit of the column: {', '.join(units)}")
    given = [*([] if source.unit is None else [source.unit]), *(other.unit for other in source.other_units)]
    if unknown := [u for u in given if accepted_unit(schema_field, u) is None]:
        raise UsageError(f"{where}: the schema does not accept the unit {unknown[0][:40]!r}", fix=f"known: {units}")
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
