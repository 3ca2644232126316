"""Read radiomics tables that were computed elsewhere: one row per case, possibly with other column names.

The output of pyradiomics' command line is read without a mapping: one row per case, with columns of settings
(`diagnostics_*`) and inputs (`Image`, `Mask`) besides the features. Other names need a mapping: external name ->
feature name, or null to ignore a column. Missing and unknown columns are rejected by name, never guessed.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from tmi.toolkit.cases.case import unopened_error
from tmi.toolkit.errors import InputRejectedError, UsageError
from tmi.toolkit.radiomics.feature_names import FEATURE_NAMES
from tmi.toolkit.radiomics.table import parse_value
from tmi.toolkit.storage.bounded_files import (
    FEATURE_TABLE_BYTES,
    RECORD_BYTES,
    YAML_BYTES,
    is_access_error,
    read_bytes,
    read_text,
)
from tmi.toolkit.storage.csv_files import csv_rows, plain_text
from tmi.toolkit.storage.documents import DocumentError, parse_yaml, read_document
from tmi.toolkit.storage.table_formats import foreign_format

IGNORED_PREFIXES = ("diagnostics_", "general_info_")
"""Prefixes of pyradiomics' columns that contain no features."""
IGNORED_COLUMNS = frozenset({"", "image", "mask", "label", "label_channel", "reader"})
"""Columns of pyradiomics' input table, in lower case."""
ID_COLUMNS = ("case_id", "case", "id", "patient_id", "patientid", "subject_id", "subject")
"""Names of the case id column, in lower case and in order of preference."""


@dataclass(frozen=True, kw_only=True)
class ExternalTable:
    """A table whose columns are matched with the features; its values are parsed case by case."""

    name: str
    """File name, for messages."""
    columns: Mapping[str, int]
    """Feature -> column index."""
    renamed: Mapping[str, str]
    """Feature -> its name in the table, if the two differ."""
    id_column: int | None
    """Index of the case id column; None for a table of one row without case ids."""
    rows: tuple[tuple[str, ...], ...]
    """Cells of the rows below the header."""

    def values_of(self, case_id: str) -> Float[NDArray[np.float64], "1781"]:
        """Return the features of a case in the order of `FEATURE_NAMES`; NaN for missing cells.

        Raises:
            InputRejectedError: `radiomics-rows`: no row of this case, or several; `radiomics-value`.
        """
        matches = self.rows
        if self.id_column is not None:
            matches = tuple(row for row in self.rows if row[self.id_column].strip() == case_id)
        if len(matches) != 1:
            raise InputRejectedError(
                f"{self.name} has {len(matches) or 'no'} row{'s' if len(matches) > 1 else ''} of this case",
                fix="give one row per case with the case folder's name as its id; set the column with --id-column",
                code="radiomics-rows",
                case_id=case_id,
            )
        cells = matches[0]
        values = [
            parse_value(cells[self.columns[name]], name=name, file=self.name, case_id=case_id) for name in FEATURE_NAMES
        ]
        return np.array(values, dtype=np.float64)


def read_mapping(path: Path) -> dict[str, str | None]:
    """Read a mapping external name -> feature name from JSON or YAML; null ignores a column.

    Raises:
        UsageError: the file cannot be read, or is not a mapping of names to distinct feature names.
    """
    fix = 'give a JSON or YAML file of the form {"column name": "feature name"}; null ignores a column'
    try:
        if path.suffix.lower() in (".yaml", ".yml"):
            data = parse_yaml(read_bytes(path, max_bytes=YAML_BYTES))
        else:
            data = read_document(path, max_bytes=RECORD_BYTES)
    except (OSError, DocumentError) as error:
        if is_access_error(error):
            raise unopened_error(path, error) from error
        reason = error.detail if isinstance(error, DocumentError) else error.strerror
        raise UsageError(f"{path} cannot be read: {reason}", fix=fix) from error
    if not isinstance(data, dict) or not all(
        isinstance(k, str) and (v is None or isinstance(v, str)) for k, v in data.items()
    ):
        raise UsageError(f"{path} is not a mapping of names", fix=fix)
    known = set(FEATURE_NAMES)
    for column, feature in data.items():
        if feature is not None and feature not in known:
            raise UsageError(
                f"{path} maps {column[:80]!r} to {feature[:80]!r}, which is not a feature",
                fix="use the feature names in docs/radiomics.md",
            )
    mapped = Counter(v for v in data.values() if v is not None)
    duplicate = next((v for v, count in mapped.items() if count > 1), None)
    if duplicate is not None:
        raise UsageError(f"{path} maps two columns to {duplicate}", fix="keep one of them")
    return data


def read_external_table(
    path: Path, mapping: Mapping[str, str | None] | None = None, *, id_column: str | None = None
) -> ExternalTable:
    """Read a table and match its columns with the features.

    Args:
        path: comma-, semicolon- or tab-separated text in UTF-8: a header and one row per case.
        mapping: external name -> feature name, as returned by `read_mapping`.
        id_column: name of the case id column; None selects the first of `ID_COLUMNS` that exists.

    Raises:
        UsageError: the table cannot be read, misses a feature or a column of the mapping, or has an unknown or
            duplicate column.
    """
    rows = _read_rows(path)
    header = [plain_text(name) for name in rows[0]]
    mapping = {plain_text(name): feature for name, feature in (mapping or {}).items()}
    if absent := [name for name in mapping if name not in header]:
        raise UsageError(
            f"{path.name} has no column {absent[0][:80]!r}, which the mapping names",
            fix="correct the name in the mapping",
        )
    id_index = _id_column(header, id_column, path.name)
    if id_index is None and len(rows) > 2:
        raise UsageError(
            f"{path.name} has {len(rows) - 1} rows and no column of case ids", fix="name the column with --id-column"
        )
    known, columns, renamed = set(FEATURE_NAMES), {}, {}
    for k, name in enumerate(header):
        feature = mapping.get(name, name)
        if k == id_index or feature is None or name.startswith(IGNORED_PREFIXES) or name.lower() in IGNORED_COLUMNS:
            continue
        if feature not in known:
            raise UsageError(
                f"{path.name} has the unknown column {name[:80]!r}",
                fix="map it to a feature, or to null to ignore it, in a file given with --map",
            )
        if feature in columns:
            raise UsageError(f"{path.name} has two columns for {feature}", fix="map one of the two columns to null")
        columns[feature] = k
        if feature != name:
            renamed[feature] = name
    if missing := [name for name in FEATURE_NAMES if name not in columns]:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UsageError(
            f"{path.name} has no column for {missing[0]}{others}",
            fix="map columns with other names with --map, or extract the features from the mask",
        )
    return ExternalTable(
        name=path.name,
        columns=columns,
        renamed=renamed,
        id_column=id_index,
        rows=tuple(tuple(row) for row in rows[1:]),
    )


def _read_rows(path: Path) -> list[list[str]]:
    fix = "save it as comma-separated UTF-8: a header, and one row per case"
    try:
        if (foreign := foreign_format(path)) is not None:
            raise UsageError(f"{path} is {foreign[0]}, which is not read", fix=fix)
        text = read_text(path, max_bytes=FEATURE_TABLE_BYTES)
        first = text.partition("\n")[0]
        delimiter = max(",;\t", key=first.count)
        rows = [row for row in csv_rows(text, delimiter=delimiter) if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        if is_access_error(error):
            raise unopened_error(path, error) from error
        reason = f": {error.strerror}" if isinstance(error, OSError) else ""
        raise UsageError(f"{path} cannot be read as a table in UTF-8{reason}", fix=fix) from error
    if len(rows) < 2:
        raise UsageError(f"{path} has no row of values", fix=fix)
    for line, row in enumerate(rows[1:], start=2):
        if len(row) != len(rows[0]):
            raise UsageError(f"{path.name} row {line}: {len(row)} cells, not {len(rows[0])}", fix=fix)
    return rows


def _id_column(header: list[str], requested: str | None, name: str) -> int | None:
    """Return the index of the case id column: the requested one, else the first of `ID_COLUMNS` that exists."""
    if requested is not None:
        if requested not in header:
            raise UsageError(
                f"{name} has no column {requested[:80]!r}", fix="name the case id column exactly as in the header"
            )
        return header.index(requested)
    lower = [column.lower() for column in header]
    return next((lower.index(column) for column in ID_COLUMNS if column in lower), None)
