"""Writer and reader of the CSV files that this package writes.

Spreadsheet programs run text as a formula if it starts with `= + - @`, a tab or a line break. Such text, for example a
case id from a file name, gets a leading apostrophe, which these programs do not execute; numbers are written as they
are. The reader removes the apostrophe, so that every text is read as it was written.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence

SIGNS = r"[=+\-@\uff1d\uff0b\uff0d\uff20\ufe66\ufe62\ufe63\ufe6b]"
"""First characters of a formula. Full-width and small signs count in East Asian locales."""
BLANKS = r"[\s\x00-\x1f\x7f-\x9f\ufeff\u200b-\u200f\u2060\u00ad\u202a-\u202e\u2066-\u2069\u180e]"
"""Characters before a formula that a program may drop: blanks, controls, characters of no width."""
FORMULA = re.compile(rf"'*({BLANKS}*{SIGNS}.|[\t\r\n])", re.DOTALL)
"""Start of a text that is escaped: apostrophes, then a formula."""
_CELL = rf"'*(?:(?![\t\r\n]){BLANKS})*{SIGNS}"
INNER = re.compile(rf"(?<=[;\t\r\n])(?={_CELL})")
"""Start of a formula inside of a text. A program whose separator is `;` or a tab splits the text there, because it does
not regard the quotation marks of a cell that stands after a comma."""
ESCAPED = re.compile(rf"(?<=[;\t\r\n])'(?={_CELL})")
"""Apostrophe that `escape_cell` wrote inside of a text."""
MAX_CELLS = 10_000_000
"""Limit on the cells of a table, which take 60 to 80 bytes each; 5,000 cases of 1,781 features have 9 million."""
MAX_STRAY_LINES, MAX_CELL_LINES, MAX_CELL_CHARACTERS = 100, 20, 2**16
"""Limits for a text with stray quotation marks: lines with one, and lines and characters of a row of several lines."""
DELIMITERS = (",", ";", "\t", "|")
"""Separators of CSV files; spreadsheet programs write the semicolon where the comma is the decimal mark."""
MAX_HEADER_CHARACTERS = 2**20
"""Limit on the part of a text in which its header is searched."""
INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b\u200c\u200d\u2060\u00ad\u200e\u200f"))
"""Characters of no width: byte order mark, zero-width spaces and joiners, soft hyphen, marks of direction."""
NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|inf|nan)", re.ASCII)
"""Text of a number, which no program executes."""


def escape_cell(value: object) -> object:
    """Return a cell that no spreadsheet program executes: what starts like a formula in a text gets an apostrophe."""
    if not isinstance(value, str) or NUMBER.fullmatch(value):
        return value
    text = INNER.sub("'", value)
    return f"'{text}" if FORMULA.match(text) else text


def unescape_cell(text: str) -> str:
    """Return the text that `escape_cell` was given."""
    if text.startswith("'") and FORMULA.match(text):
        text = text[1:]
    return ESCAPED.sub("", text)


def csv_text(header: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a table as CSV: comma, `\\n`, header first; None is an empty cell, floats keep all digits."""
    return "".join(_line([escape_cell(cell) for cell in row]) for row in (header, *rows))


def _line(cells: list[object]) -> str:
    stream = io.StringIO()
    # The writer quotes the characters of its line terminator: both, so that no cell breaks a line.
    csv.writer(stream, lineterminator="\r\n").writerow(cells)
    return stream.getvalue().removesuffix("\r\n") + "\n"


def plain_text(text: str) -> str:
    """Return a text as headings and codes are compared: composed letters, single spaces, nothing invisible.

    A heading may have a letter and its accent as two characters (NFD), no-break spaces, tabs, line breaks, or marks of
    no width, all of which look the same.
    """
    if text.isascii() and text.isprintable() and "  " not in text:
        return text.strip()
    composed = unicodedata.normalize("NFC", text.translate(INVISIBLE))
    return " ".join(composed.split())


def find_delimiter(text: str, wanted: Collection[str]) -> str:
    """Return the separator under which the header has most of the wanted columns, then most columns."""
    start = text[:MAX_HEADER_CHARACTERS]

    def matches(delimiter: str) -> tuple[int, int]:
        header = next(csv.reader(io.StringIO(start, newline=""), delimiter=delimiter), [])
        names = {plain_text(name) for name in header}
        return sum(plain_text(name) in names for name in wanted), len(header)

    return max(DELIMITERS, key=matches)


def csv_rows(text: str, *, delimiter: str = ",", strict: bool = True, max_cells: int = MAX_CELLS) -> list[list[str]]:
    """Return the rows of any CSV text, empty ones included; its size is checked before it is parsed.

    Raises:
        csv.Error: the text is not CSV, or may have more than `max_cells` cells or lines.
    """
    _require_cells(text, delimiter, max_cells)
    return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=strict))


def csv_rows_of_lines(text: str, *, delimiter: str = ",", max_cells: int = MAX_CELLS) -> list[list[str] | None]:
    """Return the rows of a CSV text that has stray quotation marks; None for each line that is not CSV.

    A cell may contain line breaks if its quotation marks are closed and its row then has as many cells as the header.
    Otherwise a line with a mark that is not closed is lost alone, and the lines after it are read.

    Raises:
        csv.Error: the header or more than `MAX_STRAY_LINES` lines are not CSV, or there may be more than `max_cells`
            cells.
    """
    _require_cells(text, delimiter, max_cells)
    lines = list(io.StringIO(text, newline=""))
    rows: list[list[str] | None] = []
    at = 0
    while at < len(lines):
        taken, row = 1, _row_of_lines(lines[at : at + 1], delimiter)
        if row is None and rows:
            width = len(rows[0] or ())
            taken, row = next(
                ((n, r) for n, r in _rows_of_several(lines, at, delimiter) if r is not None and len(r) == width),
                (1, None),
            )
        rows.append(row)
        if rows[0] is None or rows.count(None) > MAX_STRAY_LINES:
            raise csv.Error("a quotation mark is not closed")
        at += taken
    return rows


def _rows_of_several(lines: list[str], at: int, delimiter: str) -> Iterator[tuple[int, list[str] | None]]:
    """Yield 2, 3, ... and the row that so many lines from `at` are, if they are one."""
    for count in range(2, min(MAX_CELL_LINES, len(lines) - at) + 1):
        part = lines[at : at + count]
        if sum(map(len, part)) > MAX_CELL_CHARACTERS:
            return
        yield count, _row_of_lines(part, delimiter)


def _row_of_lines(lines: list[str], delimiter: str) -> list[str] | None:
    """Return the one row that the lines are; None if they are none, or several."""
    try:
        (row,) = csv.reader(lines, delimiter=delimiter, strict=True)
    except (csv.Error, ValueError):
        return None
    return row


def csv_dicts(text: str, *, delimiter: str = ",", max_cells: int = MAX_CELLS) -> csv.DictReader[str]:
    """Return an iterator over the rows of any CSV text as column -> text; its size is checked before it is parsed.

    Raises:
        csv.Error: as in `csv_rows`; also while the rows are read.
    """
    _require_cells(text, delimiter, max_cells)
    return csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)


def _require_cells(text: str, delimiter: str, max_cells: int) -> None:
    """Raise if a text may have too many cells; separators inside of quotes are counted, too."""
    if sum(map(text.count, {delimiter, "\n", "\r"})) >= max_cells:
        raise csv.Error(f"it has more than {max_cells:,} cells")


def csv_records(text: str) -> list[dict[str, str]]:
    """Return the rows of a table of `csv_text` as column -> text.

    Raises:
        ValueError: the text is not CSV, or a row has more or fewer cells than the header.
    """
    try:
        rows = [[unescape_cell(c) for c in row] for row in csv_rows(text, strict=False) if row]
    except csv.Error as error:
        raise ValueError("malformed CSV") from error
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
