"""Radiomics tables that were computed elsewhere: rows of cases under other names.

What pyradiomics' own command line writes is read as it is: a row a case, columns of settings (`diagnostics_*`) and of
inputs (`Image`, `Mask`) beside the features. A mapping gives other names: foreign name -> our name, or null for a
column to be left out. Nothing is guessed: what is missing or unknown is refused by name.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from tmi.toolkit.errors import InputRejectedError, UsageError
from tmi.toolkit.radiomics.feature_names import FEATURE_NAMES
from tmi.toolkit.radiomics.table import parse_value

IGNORED_PREFIXES = ("diagnostics_", "general_info_")
"""Columns of pyradiomics that hold no features."""
IGNORED_COLUMNS = frozenset({"", "image", "mask", "label", "label_channel", "reader"})
"""Columns of pyradiomics' input table, in lower case."""
ID_COLUMNS = ("case_id", "case", "id", "patient_id", "patientid", "subject_id", "subject")
"""Where the case id is looked for, in lower case, in this order."""
MAX_BYTES = 512 * 2**20


@dataclass(frozen=True, kw_only=True)
class ExternalTable:
    """A table whose columns have been matched with our features; its values are read case by case."""

    name: str
    """File name, for messages."""
    columns: Mapping[str, int]
    """Feature -> column."""
    renamed: Mapping[str, str]
    """Feature -> its name in the table, where they differ."""
    id_column: int | None
    """Column of the case id; None in a table of one row without one."""
    rows: tuple[tuple[str, ...], ...]
    """Cells."""

    def values_of(self, case_id: str) -> Float[NDArray[np.float64], "1781"]:
        """The features of a case, in the order of `FEATURE_NAMES`; NaN where a cell is missing.

        Raises:
            InputRejectedError: `radiomics-rows`: no row of this case, or several; `radiomics-value`.
        """
        found = self.rows
        if self.id_column is not None:
            found = tuple(row for row in self.rows if row[self.id_column].strip() == case_id)
        if len(found) != 1:
            raise InputRejectedError(
                f"{self.name} has {len(found) or 'no'} row{'s' if len(found) > 1 else ''} of this case",
                fix="give one row a case, its id as the case folder's name, and name the column with --id-column",
                code="radiomics-rows",
                case_id=case_id,
            )
        cells = found[0]
        values = [
            parse_value(cells[self.columns[name]], name=name, file=self.name, case_id=case_id) for name in FEATURE_NAMES
        ]
        return np.array(values, dtype=np.float64)


def read_mapping(path: Path) -> dict[str, str | None]:
    """Foreign name -> our name, from JSON or YAML; null leaves a column out.

    Raises:
        UsageError: it cannot be read, or is no mapping of names to feature names.
    """
    fix = 'give a JSON or YAML file of the form {"their name": "our name"}; null leaves a column out'
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() in (".yaml", ".yml"):
            import yaml

            try:
                data = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise UsageError(f"{path} cannot be read as YAML", fix=fix) from error
        else:
            data = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read", fix=fix) from error
    if not isinstance(data, dict) or not all(
        isinstance(k, str) and (v is None or isinstance(v, str)) for k, v in data.items()
    ):
        raise UsageError(f"{path} is no mapping of names", fix=fix)
    known = set(FEATURE_NAMES)
    for theirs, ours in data.items():
        if ours is not None and ours not in known:
            raise UsageError(
                f"{path} maps {theirs[:80]!r} to {ours[:80]!r}, which is no feature",
                fix="use the names of docs/radiomics.md",
            )
    mapped = [v for v in data.values() if v is not None]
    twice = next((v for v in mapped if mapped.count(v) > 1), None)
    if twice is not None:
        raise UsageError(f"{path} maps two columns to {twice}", fix="keep one of them")
    return data


def read_external_table(
    path: Path, mapping: Mapping[str, str | None] | None = None, *, id_column: str | None = None
) -> ExternalTable:
    """Match a table's columns with our features.

    Args:
        path: comma-, semicolon- or tab-separated text in UTF-8, a header and a row a case.
        mapping: as `read_mapping` gives it.
        id_column: name of the column of case ids; None looks for one of `ID_COLUMNS`.

    Raises:
        UsageError: it cannot be read, lacks a feature or a column that the mapping names, or has an unknown or doubled
            column.
    """
    rows = _read_rows(path)
    header, mapping = [name.strip() for name in rows[0]], mapping or {}
    if lacking := [name for name in mapping if name not in header]:
        raise UsageError(f"{path.name} has no column {lacking[0][:80]!r}, which the mapping names", fix="correct it")
    number = _id_column(header, id_column, path.name)
    if number is None and len(rows) > 2:
        raise UsageError(f"{path.name} has {len(rows) - 1} rows and no column of case ids", fix="name it: --id-column")
    known, columns, renamed = set(FEATURE_NAMES), {}, {}
    for k, name in enumerate(header):
        ours = mapping.get(name, name)
        if k == number or ours is None or name.startswith(IGNORED_PREFIXES) or name.lower() in IGNORED_COLUMNS:
            continue
        if ours not in known:
            raise UsageError(
                f"{path.name} has the unknown column {name[:80]!r}",
                fix="map it to one of our features, or to null to leave it out, in a file given with --map",
            )
        if ours in columns:
            raise UsageError(f"{path.name} gives {ours} twice", fix="map one of the two columns to null")
        columns[ours] = k
        if ours != name:
            renamed[ours] = name
    if missing := [name for name in FEATURE_NAMES if name not in columns]:
        others = f", with {len(missing) - 1} others" if len(missing) > 1 else ""
        raise UsageError(
            f"{path.name} lacks {missing[0]}{others}",
            fix="map the columns of other names with --map, or extract the features from the mask",
        )
    return ExternalTable(
        name=path.name,
        columns=columns,
        renamed=renamed,
        id_column=number,
        rows=tuple(tuple(row) for row in rows[1:]),
    )


def _read_rows(path: Path) -> list[list[str]]:
    fix = "save it as comma-separated UTF-8: a header, and a row a case"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path} is larger than any table of features", fix=fix)
        text = path.read_text(encoding="utf-8-sig")
        first = text.partition("\n")[0]
        delimiter = max(",;\t", key=first.count)
        rows = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter, strict=True) if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read as a table in UTF-8", fix=fix) from error
    if len(rows) < 2:
        raise UsageError(f"{path} has no row of values", fix=fix)
    for line, row in enumerate(rows[1:], start=2):
        if len(row) != len(rows[0]):
            raise UsageError(f"{path.name} row {line}: {len(row)} cells, not {len(rows[0])}", fix=fix)
    return rows


def _id_column(header: list[str], asked: str | None, name: str) -> int | None:
    if asked is not None:
        if asked not in header:
            raise UsageError(f"{name} has no column {asked[:80]!r}", fix="name the column of case ids as it is written")
        return header.index(asked)
    lower = [column.lower() for column in header]
    return next((lower.index(column) for column in ID_COLUMNS if column in lower), None)
