"""One row of a hospital's table as a clinical record with its ids, label and dates, by the rules of the mapping.

No text that is raised here holds a value of the table: the row's number, the column and the field tell where to look.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmi.toolkit.cases.case import CLINICAL_FILE, Case, is_portable_name
from tmi.toolkit.clinical.record import Value, read_values
from tmi.toolkit.clinical.schema import Schema
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.ingest.tabular.mapping import Condition, DateSource, FieldSource, IdSource, Mapping
from tmi.toolkit.ingest.tabular.reader import Cell, Row, Table, cell_text

NUMBER = {
    ".": re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII),
    ",": re.compile(r"[+-]?(\d+,?\d*|,\d+)([eE][+-]?\d+)?", re.ASCII),
}
"""A number as text, by its decimal mark. Digits are never grouped: "1.234" may be either, so the mark must fit."""
RESERVED = ("cohort.csv", "import-report.json", "import-report.csv")
"""Names of the cohort's own files."""
DATE_ORDER = {"iso": (0, 1, 2), "day-month-year": (2, 1, 0), "month-day-year": (2, 0, 1)}
"""Where year, month and day stand."""


class RowRejectedError(Exception):
    """A row that cannot be used.

    Args:
        code: short name of the reason.
        why: the reason, without a value of the table.
        case_id: the row's case, where it has got one.
    """

    def __init__(self, code: str, why: str, *, case_id: str | None = None) -> None:
        super().__init__(why)
        self.code = code
        self.why = why
        self.case_id = case_id


class RowExcludedError(RowRejectedError):
    """A row that is good but has no label under the mapping's rule."""


@dataclass(frozen=True, kw_only=True)
class RowRecord:
    """What a row comes to."""

    case_id: str
    """Name of its case."""
    patient_id: str
    """Its patient."""
    label: str | None
    """`good` or `bad`; None where the mapping has no label rule."""
    clinical: dict[str, Any]
    """Content of clinical.json; values in the schema's units."""
    days_from_blood_to_ct: int | None
    """Days, where both dates are known."""
    files: dict[str, Path]
    """`ct`, `mask`, `radiomics` -> path, those that are named."""
    series: str | None
    """Series to take from a DICOM folder."""


class RowReader:
    """Reads the rows of one table by one mapping."""

    def __init__(self, table: Table, mapping: Mapping, schema: Schema, *, base_folder: Path) -> None:
        """Take a table whose columns the mapping names; paths of images start `base_folder` it."""
        self._index = {name: table.columns.index(name) for name in mapping.columns()}
        self._mapping, self._schema, self._base_folder = mapping, schema, base_folder
        self._missing = {"", *_texts(mapping.table.missing)}
        self._missing_in = {
            source.column: self._missing | _texts(source.missing)
            for source in mapping.fields.values()
            if source.column is not None
        }

    def cell(self, row: Row, column: str) -> Cell | None:
        """A cell of a column that the mapping names; None where it is missing."""
        cell = row.cells[self._index[column]]
        return None if self.is_missing(column, cell) else cell

    def is_missing(self, column: str, cell: Cell) -> bool:
        """Whether a cell, of any column of the table, stands for a missing value."""
        return cell_text(cell) in self._missing_in.get(column, self._missing)

    def case_id(self, row: Row) -> str:
        """The row's case.

        Raises:
            RowRejectedError: id: there is none, or it cannot be a folder's name.
        """
        return self._id(row, self._mapping.case_id, "case")

    def read(self, row: Row) -> RowRecord:
        """The whole row.

        Raises:
            RowRejectedError: the row cannot be used.
            RowExcludedError: it has no label.
        """
        case_id = self.case_id(row)
        try:
            if row.fault is not None:
                raise RowRejectedError("row", row.fault)
            return self._read(row, case_id)
        except RowRejectedError as error:
            error.case_id = case_id
            raise

    def _read(self, row: Row, case_id: str) -> RowRecord:
        mapping = self._mapping
        patient_id = case_id if mapping.patient_id is None else self._id(row, mapping.patient_id, "patient")
        values = self._values(row, case_id)
        blood, ct = self._date(row, mapping.blood_date), self._date(row, mapping.ct_date)
        report = None if mapping.report is None else self.cell(row, mapping.report.column)
        clinical: dict[str, Any] = {
            "patient_id": patient_id,
            "values": values,
            "report": None if report is None else cell_text(report),
        }
        if blood is not None and ct is None:  # the CT may tell its date; once their distance is known no date is kept
            clinical["blood_date"] = blood.isoformat()
        files, series = self._files(row)
        return RowRecord(
            case_id=case_id,
            patient_id=patient_id,
            label=self._label(row),  # last: a row that is wrong is told so rather than that it has no label
            clinical=clinical,
            days_from_blood_to_ct=None if blood is None or ct is None else (ct - blood).days,
            files=files,
            series=series,
        )

    def _id(self, row: Row, source: IdSource, what: str) -> str:
        cell = row.cells[self._index[source.column]]
        text = source.prefix + cell_text(cell)
        if self.is_missing(source.column, cell):
            raise RowRejectedError("id", f"column {source.column!r} gives no {what} id")
        if not (_case_name(text) if what == "case" else text.isprintable()):
            raise RowRejectedError("id", f"the {what} id in column {source.column!r} is no plain name")
        return text

    def _values(self, row: Row, case_id: str) -> dict[str, Value]:
        """Values in the schema's units; missing ones are left out."""
        given = {name: self._given(row, name, source) for name, source in self._mapping.fields.items()}
        case = Case(folder=Path(case_id), case_id=case_id)
        try:
            read = read_values(case, given, self._schema)
        except InputRejectedError as error:
            raise RowRejectedError(error.code, error.what.removeprefix(f"{CLINICAL_FILE}: ")) from error
        # 12 digits: what the table says, without the noise of binary fractions (14.5 * 17.104 is 248.008)
        return {
            name: float(f"{value:.12g}") if isinstance(value, float) else value
            for name, value in read.items()
            if value is not None
        }

    def _given(self, row: Row, name: str, source: FieldSource) -> Any:
        """A field as clinical.json takes it: a word, or a number with its unit."""
        number: Any
        if source.column is None:
            number = source.fixed
        else:
            cell = self.cell(row, source.column)
            if cell is None:
                return None
            if cell_text(cell) in source.values:
                number = source.values[cell_text(cell)]
            elif self._schema.by_name[name].choices is not None:
                number = cell_text(cell)
            else:
                number = self._number(cell, source.column, source.decimal)
        return number if number is None or source.unit is None else {"value": number, "unit": source.unit}

    def _number(self, cell: Cell, column: str, decimal: str | None = None) -> float:
        if isinstance(cell, float):
            number = cell
        else:
            mark = decimal or self._mapping.table.decimal
            if not NUMBER[mark].fullmatch(cell.strip()):
                raise RowRejectedError(
                    "number",
                    f"column {column!r} holds no number with decimal mark {mark!r} "
                    "(say in the mapping what such a text means: values, missing or decimal)",
                )
            number = float(cell.strip().replace(",", "."))
        if not math.isfinite(number):
            raise RowRejectedError("number", f"column {column!r} holds no finite number")
        return number

    def _date(self, row: Row, source: DateSource | None) -> datetime.date | None:
        cell = None if source is None else self.cell(row, source.column)
        if source is None or cell is None:
            return None
        text = cell_text(cell)
        try:
            if re.match(r"\d{4}-\d{2}-\d{2}([ T]|$)", text):
                return datetime.date.fromisoformat(text[:10])  # also what a workbook's own dates become
            parts = [int(p) for p in re.fullmatch(r"(\d{1,4})[./-](\d{1,2})[./-](\d{1,4})", text).groups()]  # type: ignore[union-attr]
            year, month, day = (parts[i] for i in DATE_ORDER[source.format])
            if year < 1000:
                raise ValueError("a year of two digits")
            return datetime.date(year, month, day)
        except (AttributeError, ValueError) as error:
            raise RowRejectedError(
                "date", f"column {source.column!r} holds no date of the form {source.format}"
            ) from error

    def _label(self, row: Row) -> str | None:
        source = self._mapping.label
        if source is None:
            return None
        if source.column is not None:
            cell = self.cell(row, source.column)
            if cell is None:
                raise RowExcludedError("no-label", f"column {source.column!r} is empty")
            if cell_text(cell) in source.values:
                return source.values[cell_text(cell)]
            raise RowExcludedError("no-label", source.otherwise)
        for rule in source.rules:
            if all(self._holds(row, condition) for condition in rule.when):
                if rule.exclude is not None:
                    raise RowExcludedError("no-label", rule.exclude)
                return rule.label
        raise RowExcludedError("no-label", source.otherwise)

    def _holds(self, row: Row, condition: Condition) -> bool:
        cell = self.cell(row, condition.column)
        if cell is None:
            raise RowExcludedError("no-label", f"column {condition.column!r}, which the label depends on, is empty")
        text = cell_text(cell)
        if condition.one_of is not None and text not in _texts(condition.one_of):
            return False
        if condition.not_one_of is not None and text in _texts(condition.not_one_of):
            return False
        bounds = (condition.above, condition.at_least, condition.below, condition.at_most)
        if all(b is None for b in bounds):
            return True
        number = self._number(cell, condition.column)
        above, at_least, below, at_most = bounds
        return (
            (above is None or number > above)
            and (at_least is None or number >= at_least)
            and (below is None or number < below)
            and (at_most is None or number <= at_most)
        )

    def _files(self, row: Row) -> tuple[dict[str, Path], str | None]:
        images = self._mapping.images
        if images is None:
            return {}, None
        found: dict[str, Path] = {}
        for use in ("ct", "mask", "radiomics"):
            column = getattr(images, use)
            cell = None if column is None else self.cell(row, column)
            if cell is not None:
                path = self._base_folder / cell_text(cell)
                if not path.exists():
                    raise RowRejectedError(f"{use}-missing", f"the path in column {column!r} is not there")
                found[use] = path
        if "ct" not in found:
            raise RowRejectedError("ct-missing", f"column {images.ct!r} names no CT")
        series = None if images.series is None else self.cell(row, images.series)
        return found, None if series is None else cell_text(series)


def _case_name(text: str) -> bool:
    """Whether a case's folder may be called so; names with a leading dot are kept for the import itself."""
    return is_portable_name(text) and not text.startswith(".") and text.casefold() not in RESERVED


def _texts(cells: Iterable[Cell]) -> set[str]:
    return {cell_text(c) for c in cells}
