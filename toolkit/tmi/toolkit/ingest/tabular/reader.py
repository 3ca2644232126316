"""Reader of a spreadsheet: CSV in its dialects, or one sheet of an Excel workbook. The file is opened read-only.

Cells are those of `tmi.toolkit.ingest.tabular.cells`. A workbook date becomes ISO text, a boolean `TRUE` or `FALSE`.
Rows are numbered as in a spreadsheet: the header is row 1. Empty rows are skipped. Defects that would shift, lose or
change values mark the row as faulty: a cell count that differs from the header, a formula without a stored value, a
merged cell, and a number format that shows another value than the cell holds.
"""

from __future__ import annotations

import codecs
import csv
import datetime
import re
import zipfile
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmi.toolkit.cases.case import unopened_error
from tmi.toolkit.compute.silence import quiet
from tmi.toolkit.errors import UnavailableError, UsageError
from tmi.toolkit.ingest.tabular.cells import Cell, DateCell, FaultyCell, cell_text, faulty_cell, shown_number
from tmi.toolkit.ingest.tabular.sources import TableSpec
from tmi.toolkit.ingest.tabular.workbook_limits import MAX_SHEET_CELLS, WORKBOOK_BYTES, workbook_excess
from tmi.toolkit.storage.bounded_files import (
    TABLE_BYTES,
    FileTooLargeError,
    NotRegularFileError,
    open_regular,
    read_bytes,
)
from tmi.toolkit.storage.csv_files import (
    csv_rows,
    csv_rows_of_lines,
    find_delimiter,
    plain_text,
)
from tmi.toolkit.storage.table_formats import foreign_format
from tmi.toolkit.storage.terminal_text import is_unicode, printable

MAX_CELLS = 5_000_000
"""Limit on the cells of a CSV file."""
MAX_COLUMNS = 16_384
"""Limit on the columns; workbooks have the same."""
CHECKED_CHARACTERS = 2**20
"""Part of a text in which null characters are searched."""
MAX_ROWS = 500_000
"""Limit on the rows, empty ones included."""
SMALLER_FIX = "split it, or remove columns"
WORKBOOKS = (".xlsx", ".xlsm")
WORKBOOK_READ_ERRORS = (
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    LookupError,
    AttributeError,
    ArithmeticError,
    ValueError,
    TypeError,
    SyntaxError,
    RuntimeError,
)
"""Exceptions of the libraries on a damaged workbook: XML errors are SyntaxErrors; an encrypted member or an unknown
compression method is a RuntimeError (NotImplementedError)."""
STRAY_QUOTE = "the row is not valid CSV: a quotation mark is not closed, or a cell is too long"
MERGED = "a cell in column {column!r} is merged with another one, so its value is not known"
MERGE_REFERENCE = re.compile(rb'<(?:\w+:)?mergeCell\s[^>]*?ref="([A-Z]{1,3}\d{1,7}:[A-Z]{1,3}\d{1,7})"')
"""Element of a sheet's XML that names a merged range."""
SEPARATOR_LINE = re.compile(r'"?sep=([,;\t|])"?\r?\n', re.IGNORECASE)
NO_CHARACTER = "a cell in column {column!r} contains half of a surrogate pair, which is no character"
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order mark -> encoding."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of values."""

    number: int
    """Row number as in the spreadsheet; the header is row 1."""
    cells: tuple[Cell, ...]
    """Cells in column order."""
    fault: str | None = None
    """Defect of the whole row; None without one. Faulty cells are no such defect (`FaultyCell`)."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A header and its rows."""

    columns: tuple[str, ...]
    """Column names in order, as `plain_text` returns them."""
    rows: tuple[Row, ...]
    """Rows in order."""


def read_cells(path: Path, spec: TableSpec, *, wanted: Collection[str]) -> Table:
    """Read a table.

    Args:
        path: `.csv`, `.tsv` or `.txt` file, or `.xlsx` or `.xlsm` workbook.
        spec: format of the table.
        wanted: required columns as `plain_text` returns them; each must occur exactly once.

    Raises:
        UsageError: the file cannot be read, or a required column is missing or duplicated.
        UnavailableError: the file is a workbook and openpyxl is not installed.
    """
    if not path.exists():
        raise UsageError(f"table {path} does not exist", fix="give a CSV or Excel file")
    try:  # before a reader: openpyxl reports a file that cannot be opened like a damaged one
        foreign = foreign_format(path, workbooks=WORKBOOKS)
    except NotRegularFileError as error:
        raise UsageError(f"table {path} cannot be read: {error.strerror}", fix=SMALLER_FIX) from error
    except OSError as error:
        raise unopened_error(path, error) from error
    if foreign is not None:
        raise UsageError(f"table {path.name} is {foreign[0]}, which is not read", fix=foreign[1])
    workbook = path.suffix.lower() in WORKBOOKS
    try:
        lines = _workbook_rows(path, spec) if workbook else _csv_rows(path, spec, wanted)
    except (FileTooLargeError, NotRegularFileError) as error:
        raise UsageError(f"table {path} cannot be read: {error.strerror}", fix=SMALLER_FIX) from error
    header = [plain_text(cell_text(c)) for c in lines[0]] if lines else []
    columns = tuple(name if is_unicode(name) else printable(name) for name in header[: _last_filled(header)])
    if len(columns) > MAX_COLUMNS:
        raise UsageError(f"table {path.name} has more than {MAX_COLUMNS:,} columns", fix="remove columns")
    if len(lines) > MAX_ROWS:
        raise UsageError(f"table {path.name} has more than {MAX_ROWS:,} rows", fix="split it")
    _require_columns(path, columns, wanted)
    rows = []
    for number, cells in enumerate(lines[1:], start=2):
        within = cells[: len(columns)] if workbook or len(cells) == len(header) else cells
        if any(cell_text(c) or (isinstance(c, FaultyCell) and c.why != MERGED) for c in within):
            rows.append(_row(number, cells, columns, len(header), padded=workbook))
    if not rows:
        raise UsageError(f"table {path} has no row below its header", fix="give a table with one row per case")
    return Table(columns=columns, rows=tuple(rows))


def _last_filled(cells: Sequence[Cell]) -> int:
    """Number of cells up to the last one that is not empty."""
    return next((n for n in range(len(cells), 0, -1) if cell_text(cells[n - 1])), 0)


def _row(number: int, cells: list[Cell], columns: tuple[str, ...], n_header: int, *, padded: bool) -> Row:
    """Build a row of the table's width.

    A workbook (`padded`) omits trailing empty cells; a CSV file does not. Cells right of the last heading are notes in
    a workbook, and in a CSV file whose header has as many cells (`n_header`), the last of them empty.
    """
    width = len(columns)
    if padded:
        cells = [*cells[:width], *[""] * (width - len(cells))]
    else:
        cells = cells[:width] if len(cells) == n_header else cells[: max(width, _last_filled(cells))]
    fault = None
    if len(cells) == 1 and isinstance(cells[0], FaultyCell) and cells[0].why == STRAY_QUOTE:
        fault = STRAY_QUOTE
    elif len(cells) != width:
        fault = f"the row has {len(cells)} cells, the header has {width}"
    else:
        cells = [c if not isinstance(c, str) or is_unicode(c) else faulty_cell("", NO_CHARACTER) for c in cells]
    return Row(number=number, cells=tuple((*cells, *[""] * width)[:width]), fault=fault)


def _require_columns(path: Path, columns: tuple[str, ...], wanted: Collection[str]) -> None:
    missing = [c for c in wanted if c not in columns]
    if missing:
        header = ", ".join(c[:40] for c in columns[:40]) or "no column"
        raise UsageError(
            f"table {path.name} has no column {missing[0][:80]!r}, which the mapping names",
            fix=f"correct the mapping or the table; its header has: {header}",
        )
    duplicates = [c for c in wanted if columns.count(c) > 1]
    if duplicates:
        raise UsageError(f"table {path.name} has the column {duplicates[0][:80]!r} twice", fix="rename one of the two")


def _csv_rows(path: Path, spec: TableSpec, wanted: Collection[str]) -> list[list[Cell]]:
    data = read_bytes(path, max_bytes=TABLE_BYTES)
    encoding = next((e for mark, e in BYTE_ORDER_MARKS if data.startswith(mark)), spec.encoding)
    try:
        text = data.decode(encoding)
        if "\0" in text[:CHECKED_CHARACTERS]:  # UTF-16 without a byte order mark is valid UTF-8
            raise LookupError
    except (UnicodeDecodeError, LookupError) as error:
        raise UsageError(
            f"table {path.name} is not text in {encoding[:40]}",
            fix="save it as CSV in UTF-8, or name its encoding in the mapping: table: {encoding: cp1252} (or utf-16)",
        ) from error
    try:
        text, declared = _without_separator_line(text)
        delimiter = spec.delimiter or declared or find_delimiter(text, wanted)
        rows: Sequence[list[str] | None] = _rows_of_text(text, delimiter)
        # a row that is not CSV has a single cell, so that it is rejected alone
        return [[faulty_cell("", STRAY_QUOTE)] if row is None else list(row) for row in rows]
    except csv.Error as error:
        raise UsageError(f"table {path.name} is not valid CSV: {error}", fix="save it again as CSV in UTF-8") from error


def _without_separator_line(text: str) -> tuple[str, str | None]:
    """Return the text without the line `sep=;`, which names the separator for Excel and is no row of the table."""
    match = SEPARATOR_LINE.match(text)
    return (text, None) if match is None else (text[match.end() :], match[1])


def _rows_of_text(text: str, delimiter: str) -> Sequence[list[str] | None]:
    """Return the rows of a CSV text; None for one with a quotation mark that is not closed.

    A stray mark makes all text up to the next mark one cell. The rows are therefore read line by line if the text is
    not CSV, or if a row that spans several lines has not as many cells as the header.
    """
    try:
        rows = csv_rows(text, delimiter=delimiter, max_cells=MAX_CELLS)
    except csv.Error:
        lines = csv_rows_of_lines(text, delimiter=delimiter, max_cells=MAX_CELLS)
        if not any(lines[1:]):
            raise
        return lines
    if any(len(row) != len(rows[0]) and any("\n" in cell for cell in row) for row in rows[1:]):
        return csv_rows_of_lines(text, delimiter=delimiter, max_cells=MAX_CELLS)
    return rows


def _workbook_rows(path: Path, spec: TableSpec) -> list[list[Cell]]:
    try:
        import openpyxl
        from openpyxl.utils.exceptions import InvalidFileException
    except ModuleNotFoundError as error:
        raise UnavailableError(
            "an Excel table needs openpyxl, which is not installed", fix="pip install 'tmi-clnet[dicom]'"
        ) from error
    try:
        with open_regular(path, max_bytes=WORKBOOK_BYTES) as stream, quiet():
            if reason := workbook_excess(stream):
                raise UsageError(f"table {path.name} {reason}", fix="save its sheet as CSV")
            # Loaded twice: openpyxl returns either the stored values or the formulas. It warns about styles and
            # validations, which are not used.
            values, formulas = (
                _sheet(openpyxl.load_workbook(stream, read_only=True, data_only=d), spec) for d in (True, False)
            )
            return [
                [_cell(stored, formula) for stored, formula in zip(row, originals, strict=True)]
                for row, originals in zip(values, formulas, strict=True)
            ]
    except (FileTooLargeError, NotRegularFileError):
        raise
    except (*WORKBOOK_READ_ERRORS, InvalidFileException) as error:
        raise UsageError(
            f"table {path.name} is not an Excel workbook", fix="save it again as .xlsx, or as CSV in UTF-8"
        ) from error


def _sheet(book: Any, spec: TableSpec) -> list[list[tuple[Any, str | None]]]:
    """Return value and number format of each cell."""
    try:
        names = book.sheetnames
        chosen = [name for name in names if spec.sheet is None or plain_text(name) == plain_text(spec.sheet)]
        if spec.sheet is not None and len(chosen) != 1:
            raise UsageError(f"the workbook has no sheet {spec.sheet[:40]!r}", fix=f"its sheets: {', '.join(names)}")
        if spec.sheet is None and len(names) != 1:
            raise UsageError(
                f"the workbook has {len(names)} sheets",
                fix=f"name one in the mapping, table: {{sheet: ...}}; its sheets: {', '.join(names)}",
            )
        sheet = book[chosen[0]]
        if not hasattr(sheet, "iter_rows"):
            raise UsageError("the sheet is a chart", fix="name a sheet of cells in the mapping")
        if hasattr(sheet, "reset_dimensions"):
            sheet.reset_dimensions()  # the declared size of a sheet is often wrong
        rows, cells = [], 0
        for row in sheet.iter_rows():  # it also returns the rows and cells that the file leaves out
            cells += len(row) + 1
            if cells > MAX_SHEET_CELLS:
                raise UsageError(f"the sheet has more than {MAX_SHEET_CELLS:,} cells", fix="save it as CSV")
            rows.append([(cell.value, cell.number_format) for cell in row])
        _mark_merged(rows, sheet)
        return rows
    finally:
        book.close()


def _mark_merged(rows: list[list[tuple[Any, str | None]]], sheet: Any) -> None:
    """Make each cell of a merged range but its first one a faulty cell: the sheet stores no value for it."""
    from openpyxl.utils.cell import range_boundaries

    with sheet._get_source() as source:  # the reader of large files has no list of the ranges
        references = MERGE_REFERENCE.findall(source.read())
    width = max(map(len, rows), default=0)
    left_over = width * len(rows)
    for reference in references:
        left, top, right, bottom = range_boundaries(reference.decode("ascii"))
        for number in range(top, min(bottom, len(rows)) + 1):
            row = rows[number - 1]
            row += [(None, None)] * (min(right, width) - len(row))  # empty cells at the end are not stored
            left_over -= len(row[left - 1 : right])
            if left_over < 0:  # ranges never overlap, so each cell is visited once
                raise ValueError("merged ranges overlap")
            for column in range(left, min(right, len(row)) + 1):
                if (number, column) != (top, left):
                    row[column - 1] = (faulty_cell("", MERGED), None)


def _cell(stored: tuple[Any, str | None], formula: tuple[Any, str | None]) -> Cell:
    value, number_format = stored
    if value is None:
        return (
            ""
            if formula[0] is None
            else faulty_cell("=", "the workbook does not store the value of a formula in column {column!r}")
        )
    if isinstance(value, FaultyCell):
        return value
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, (int, float)):
        return shown_number(float(value), number_format)
    if isinstance(value, datetime.datetime):
        return DateCell(value.date().isoformat())
    if isinstance(value, (datetime.time, datetime.timedelta)):
        return DateCell(str(value))
    return DateCell(value.isoformat()) if isinstance(value, datetime.date) else str(value)
