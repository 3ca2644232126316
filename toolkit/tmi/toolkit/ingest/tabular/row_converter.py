"""Conversion of one table row to a clinical record, ids, label, dates and file paths, as the mapping specifies.

Error messages contain no value of the table; row number, column and field identify the cell.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from tmi.toolkit.cases.case import MAX_NAME_BYTES, Case, is_portable_name, is_too_long
from tmi.toolkit.clinical.record import Value, read_all_values
from tmi.toolkit.clinical.schema import Schema, accepted_unit, convert, plausible
from tmi.toolkit.ingest.tabular.cells import (
    ERROR_VALUES,
    EXACT_BELOW,
    SHORTENED,
    WITH_DECIMAL,
    Cell,
    Codes,
    DateCell,
    DecimalMark,
    FaultyCell,
    cell_number,
    cell_text,
)
from tmi.toolkit.ingest.tabular.mapping import Mapping
from tmi.toolkit.ingest.tabular.reader import Row, Table
from tmi.toolkit.ingest.tabular.row_faults import (
    RowExcludedError,
    RowRejectedError,
    attempt,
    clinical_fault,
    fault,
    rejected,
)
from tmi.toolkit.ingest.tabular.sources import UNLABELLED, Code, Condition, DateSource, FieldSource, IdSource
from tmi.toolkit.issues.issue import Issue
from tmi.toolkit.storage.csv_files import plain_text

OUTSIDE = object()
"""Stands for a number outside the plausible range that the mapping makes missing."""

RESERVED = ("cohort.csv", "import-report.json", "import-report.csv", "clinical_schema.json", "tmi.toml")
"""File names of the cohort, which cannot be case ids."""
DATE_ORDER = {"iso": (0, 1, 2), "day-month-year": (2, 1, 0), "month-day-year": (2, 0, 1)}
"""Date format -> indices of year, month and day among the parts."""


@dataclass(frozen=True, kw_only=True)
class RowRecord:
    """Converted row."""

    case_id: str
    """Case id."""
    patient_id: str
    """Patient id."""
    label: str | None
    """`good` or `bad`; None if the mapping has no label rule."""
    clinical: dict[str, Any]
    """Content of clinical.json, values in the units of the schema."""
    days_from_blood_to_ct: int | None
    """Days from the blood sample to the CT; None unless both dates are known."""
    files: dict[str, Path]
    """`ct`, `mask`, `radiomics` -> path, for those that the row names."""
    series: str | None
    """Series to select in a DICOM folder."""
    set_missing: tuple[str, ...] = ()
    """Fields whose number lies outside the plausible range, and is missing by the mapping's rule."""


class RowReader:
    """Converts the rows of one table with one mapping.

    Args:
        table: table that contains every column of the mapping.
        mapping: validated mapping.
        schema: clinical schema of the mapping.
        base_folder: folder that relative image paths refer to.
    """

    def __init__(self, table: Table, mapping: Mapping, schema: Schema, *, base_folder: Path) -> None:
        self._index = {name: table.columns.index(name) for name in mapping.columns()}
        self._mapping, self._schema, self._base_folder = mapping, schema, base_folder
        decimal = mapping.table.decimal
        self._missing = Codes(mapping.table.missing, decimal)
        self._missing_in = {
            source.column: Codes((*mapping.table.missing, *source.missing), source.decimal or decimal)
            for source in mapping.fields.values()
            if source.column is not None
        }

    def cell(self, row: Row, column: str) -> Cell | None:
        """Return the cell of a mapped column; None if the value is missing.

        Raises:
            RowRejectedError: row: the value of the cell cannot be used.
        """
        cell = _usable(row.cells[self._index[column]], column)
        return None if self.is_missing(column, cell) else cell

    def is_missing(self, column: str, cell: Cell) -> bool:
        """Return whether a cell of any column marks a missing value."""
        return not plain_text(cell_text(cell)) or cell in self._missing_in.get(column, self._missing)

    def case_id(self, row: Row) -> str:
        """Return the case id of a row.

        Raises:
            RowRejectedError: id: the id is missing or not a valid folder name.
        """
        return self._id(row, self._mapping.case_id, "case")

    def read(self, row: Row) -> RowRecord:
        """Convert a row.

        Raises:
            RowRejectedError: the row cannot be imported; the error has all its faults.
            RowExcludedError: the row has no label.
        """
        faults: list[Issue] = []
        case_id = attempt(faults, lambda: self.case_id(row))
        if row.fault is not None:
            raise rejected([fault("row", row.fault)], case_id=case_id)
        try:
            record = self._convert(row, case_id or "", faults)
        except RowExcludedError as error:
            error.case_id = case_id
            if not faults or error.stated:  # what the mapping leaves out need not be correct
                raise
            faults += error.issues
        if faults:
            raise rejected(faults, case_id=case_id)
        return record

    def _convert(self, row: Row, case_id: str, faults: list[Issue]) -> RowRecord:
        """Convert a row and add every fault to `faults`; the record is of no use if there is one."""
        mapping = self._mapping
        patient_id: str | None = case_id
        if mapping.patient_id is not None:
            source = mapping.patient_id
            patient_id = attempt(faults, lambda: self._id(row, source, "patient"))
        values, set_missing = self._values(row, case_id, faults)
        blood = attempt(faults, lambda: self._date(row, mapping.blood_date))
        ct = attempt(faults, lambda: self._date(row, mapping.ct_date))
        text_source = mapping.report
        report = None if text_source is None else attempt(faults, lambda: self.cell(row, text_source.column))
        clinical: dict[str, Any] = {
            "patient_id": patient_id,
            "values": values,
            "report": None if report is None else cell_text(report),
        }
        # The DICOM header may still give the CT date. Once the distance in days is known, neither date is stored.
        if blood is not None and ct is None:
            clinical["blood_date"] = blood.isoformat()
        files, series = self._files(row, faults)
        return RowRecord(
            case_id=case_id,
            patient_id=patient_id or "",
            label=attempt(faults, lambda: self._label(row)),
            clinical=clinical,
            days_from_blood_to_ct=None if blood is None or ct is None else (ct - blood).days,
            files=files,
            series=series,
            set_missing=set_missing,
        )

    def _id(self, row: Row, source: IdSource, kind: str) -> str:
        if source.column is None:
            return f"{source.prefix}{row.number}"
        cell = _usable(row.cells[self._index[source.column]], source.column)
        text = source.prefix + cell_text(cell)
        if self.is_missing(source.column, cell):
            raise RowRejectedError("id", f"column {source.column!r} holds no {kind} id")
        if reason := _changed_id(cell):
            raise RowRejectedError(
                "id",
                f"the {kind} id in column {source.column!r} {reason}; format the column as text and enter it again",
            )
        if kind == "case" and is_too_long(text):
            raise RowRejectedError(
                "id", f"the case id in column {source.column!r} has more than {MAX_NAME_BYTES} bytes"
            )
        if not (_is_case_name(text) if kind == "case" else text.isprintable()):
            raise RowRejectedError("id", f"the {kind} id in column {source.column!r} is not a plain name")
        return text

    def _values(self, row: Row, case_id: str, faults: list[Issue]) -> tuple[dict[str, Value], tuple[str, ...]]:
        """Return the values in the units of the schema, without missing ones, and the fields that are set missing."""
        given: dict[str, Any] = {}
        set_missing = []
        for name, source in self._mapping.fields.items():
            given[name] = attempt(faults, partial(self._field, row, name, source))
            if given[name] is OUTSIDE:
                given[name] = None
                set_missing.append(name)
        read, errors = read_all_values(Case(folder=Path(case_id), case_id=case_id), given, self._schema)
        for error in errors:
            faults.append(clinical_fault(error))
        # 12 digits keep the precision of the table and remove binary noise (14.5 * 17.104 gives 248.00799999999998).
        values: dict[str, Value] = {
            name: float(f"{value:.12g}") if isinstance(value, float) else value
            for name, value in read.items()
            if value is not None
        }
        return values, tuple(set_missing)

    def _field(self, row: Row, name: str, source: FieldSource) -> Any:
        """Return a field in the format of clinical.json: a choice, or a number with its unit; or `OUTSIDE`."""
        field = self._schema.by_name[name]
        unit = None if source.unit is None else accepted_unit(field, source.unit)
        number: Any
        if source.column is None:
            number = source.fixed
        else:
            cell = self.cell(row, source.column)
            if cell is None:
                return None
            code = self._codes(source.values, source.decimal).match(cell)
            if code is not None:
                number = source.values[code]
            elif field.choices is not None:
                number = plain_text(cell_text(cell))
            else:
                number = self._number(cell, source.column, source.decimal, unit)
                unit = next((accepted_unit(field, o.unit) for o in source.other_units if o.applies(number)), unit)
        if source.outside == "missing" and number is not None:
            converted = convert(field, float(number), unit)
            if converted is None or not plausible(field, converted):
                return OUTSIDE
        return number if number is None or unit is None else {"value": number, "unit": unit}

    def _codes(self, codes: Iterable[Code], decimal: DecimalMark | None = None) -> Codes:
        return _codes(tuple(codes), decimal or self._mapping.table.decimal)

    def _number(self, cell: Cell, column: str, decimal: DecimalMark | None = None, unit: str | None = None) -> float:
        """Return the number of a cell in `unit`; a percentage needs the unit % or fraction."""
        mark = decimal or self._mapping.table.decimal
        number = cell_number(cell, mark)
        if number is None:
            raise RowRejectedError(
                "number",
                f"column {column!r} holds no number with decimal mark {mark!r} "
                "(define the meaning of such text in the mapping: values, missing or decimal)",
            )
        value = number.value
        if number.is_percent and unit == "fraction":
            value /= 100
        elif number.is_percent and unit != "%":
            raise RowRejectedError(
                "number", f"column {column!r} holds a percentage, which needs the unit % or fraction in the mapping"
            )
        if not math.isfinite(float(value)):
            raise RowRejectedError("number", f"column {column!r} holds no finite number")
        return float(value)

    def _date(self, row: Row, source: DateSource | None) -> datetime.date | None:
        cell = None if source is None else self.cell(row, source.column)
        if source is None or cell is None:
            return None
        reason = f"no date of format {source.format}"
        try:
            return _read_date(cell_text(cell), source.format)
        except _DateError as error:
            reason = f"{error}, and {reason}"
        except ValueError:
            pass
        raise RowRejectedError("date", f"column {source.column!r} holds {reason}")

    def _label(self, row: Row) -> str | None:
        source = self._mapping.label
        if source is None:
            return None
        if source.column is not None:
            cell = self.cell(row, source.column)
            if cell is None:
                raise RowExcludedError(f"column {source.column!r} is empty", stated=False)
            code = self._codes(source.values).match(cell)
            if code is None:
                raise _unnamed_label_error(source.column)
            label = source.values[code]
            if label == "exclude":
                raise RowExcludedError(source.otherwise, stated=True)
            return label
        for rule in source.rules:
            if all(self._is_met(row, condition) for condition in rule.when):
                if rule.exclude is not None:
                    raise RowExcludedError(rule.exclude, stated=True)
                return rule.label
        conditions = [c for rule in source.rules for c in rule.when]
        if len({c.column for c in conditions}) == 1 and all(c.has_only_codes for c in conditions):
            # Rules over the codes of one column are a value map, so the code is one that they do not name.
            raise _unnamed_label_error(conditions[0].column)
        raise RowExcludedError(source.otherwise, stated=source.otherwise != UNLABELLED)

    def _is_met(self, row: Row, condition: Condition) -> bool:
        cell = self.cell(row, condition.column)
        if cell is None:
            raise RowExcludedError(f"column {condition.column!r}, which the label depends on, is empty", stated=False)
        if condition.one_of is not None and cell not in self._codes(condition.one_of):
            return False
        if condition.not_one_of is not None and cell in self._codes(condition.not_one_of):
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

    def _files(self, row: Row, faults: list[Issue]) -> tuple[dict[str, Path], str | None]:
        images = self._mapping.images
        if images is None:
            return {}, None
        files: dict[str, Path] = {}
        for use in ("ct", "mask", "radiomics"):
            column = getattr(images, use)
            cell = None if column is None else attempt(faults, partial(self.cell, row, column))
            if cell is not None:
                files[use] = self._base_folder / cell_text(cell)
                faults += _path_faults(files[use], use, column)
        if "ct" not in files and self._is_readable(row, images.ct):
            faults.append(fault("ct-missing", f"column {images.ct!r} names no CT"))
        column = images.series
        series = None if column is None else attempt(faults, partial(self.cell, row, column))
        return files, None if series is None else cell_text(series)

    def _is_readable(self, row: Row, column: str) -> bool:
        return not isinstance(row.cells[self._index[column]], FaultyCell)


class _DateError(ValueError):
    """A text is no date for a reason that can be named."""


def _read_date(text: str, order: str) -> datetime.date:
    """Return the date of a text; a time that follows it is left out.

    Raises:
        ValueError: it is no date. _DateError: why it is none.
    """
    if re.match(r"\d{4}-\d{2}-\d{2}([ T]|$)", text):
        return datetime.date.fromisoformat(text[:10])  # workbook dates arrive as ISO text
    if order == "iso" and re.fullmatch(r"\d{8}", text, re.ASCII):
        return datetime.date.fromisoformat(text)
    if cell_number(text, ".") is not None and "." not in text:
        raise _DateError("a number that is not formatted as a date")
    match = re.fullmatch(r"(\d{1,4})[./-](\d{1,2})[./-](\d{1,4})( .*)?", text, re.ASCII)
    if match is None:
        raise ValueError
    parts = [int(p) for p in match.groups()[:3]]
    year, month, day = (parts[i] for i in DATE_ORDER[order])
    if max(parts) < 100:
        raise _DateError("a year of two digits")
    if year < 1000:
        raise ValueError
    return datetime.date(year, month, day)


def _path_faults(path: Path, use: str, column: str) -> list[Issue]:
    """Return the fault of a path that does not exist, or that cannot be accessed."""
    try:
        path.stat()
    except (OSError, ValueError) as error:  # ValueError: a null character
        if isinstance(error, PermissionError):
            return [fault("case-unreadable", f"the path in column {column!r} cannot be opened ({error.strerror})")]
        return [fault(f"{use}-missing", f"the path in column {column!r} does not exist")]
    return []


def _usable(cell: Cell, column: str) -> Cell:
    """Return a cell, unless its value cannot be used."""
    if isinstance(cell, FaultyCell):
        raise RowRejectedError("row", cell.why.format(column=column))
    return cell


def _is_case_name(text: str) -> bool:
    """Return whether a text is a valid case id; a leading dot is reserved for temporary folders."""
    return is_portable_name(text) and not text.startswith(".") and text.casefold() not in RESERVED


def _unnamed_label_error(column: str) -> RowExcludedError:
    return RowExcludedError(f"column {column!r} holds a text that the mapping's label does not name", stated=False)


def _changed_id(cell: Cell) -> str | None:
    """Return why an id may differ from the one that was entered; None if it does not."""
    if isinstance(cell, DateCell):
        return "was turned into a date"
    if not isinstance(cell, str):
        is_exact = abs(cell) < EXACT_BELOW
        return None if is_exact else "is a number of more than 15 digits, whose last digits a workbook loses"
    text = cell.strip()
    if text.upper() in ERROR_VALUES:
        return "is the error of a formula"
    if WITH_DECIMAL.fullmatch(text):
        return "is a whole number with a decimal, which it did not have before a program wrote it"
    is_shortened = SHORTENED.fullmatch(text) is not None
    return "is a number in scientific notation, which loses its last digits" if is_shortened else None


@lru_cache
def _codes(codes: tuple[Code, ...], decimal: DecimalMark) -> Codes:
    return Codes(codes, decimal)
