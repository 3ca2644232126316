"""Cells of a table: their text, their number, and comparison of a cell with the codes of a mapping.

Both readers give the same cells. A cell is stripped text, or a float if a workbook stores a number that its format does
not change. A workbook number whose format shows something else (`35 %`, `00123`) becomes the text that is shown, with
all digits; a format that shows another value is a `FaultyCell`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from tmi.toolkit.storage.csv_files import plain_text

Cell = str | float
DecimalMark = Literal[".", ","]
NUMBER = {
    ".": re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII),
    ",": re.compile(r"[+-]?(\d+,?\d*|,\d+)([eE][+-]?\d{1,4})?", re.ASCII),
}
"""Decimal mark -> pattern of a number. Digit grouping is not accepted, because "1.234" would be ambiguous."""
MAX_DIGITS = 400
"""Limit on the length of a number."""
EXACT_BELOW = 1e15
"""A workbook keeps 15 significant digits of a number."""
SHORTENED = re.compile(r"[+-]?\d([.,]\d+)?[eE]\+\d+", re.ASCII)
"""A long number as spreadsheet programs, pandas and R write it to CSV, with its last digits lost."""
WITH_DECIMAL = re.compile(r"\d+\.0", re.ASCII)
"""A whole number as pandas writes it to CSV if another cell of its column is empty."""
ERROR_VALUES = frozenset(
    ("#REF!", "#N/A", "#NAME?", "#NULL!", "#NUM!", "#VALUE!", "#DIV/0!", "#SPILL!", "#CALC!", "#GETTING_DATA")
)
"""Text of a cell whose formula failed."""


class DateCell(str):
    """ISO text of a workbook date."""


class FaultyCell(str):
    """Text of a cell whose value cannot be used."""

    why: str
    """Reason; `{column!r}` in it stands for the column."""


def faulty_cell(text: str, why: str) -> FaultyCell:
    """Return a faulty cell with its reason."""
    cell = FaultyCell(text)
    cell.why = why
    return cell


@dataclass(frozen=True)
class Number:
    """Number of a cell."""

    value: Decimal
    """The number as shown: 35 for `35 %`."""
    is_percent: bool = False
    """Whether a percent sign follows the number."""


def cell_text(cell: Cell) -> str:
    """Return the cell as text; whole numbers have no decimals."""
    if isinstance(cell, str):
        return cell.strip()
    return str(int(cell)) if math.isfinite(cell) and cell == int(cell) else repr(cell)


def cell_number(cell: Cell, decimal: DecimalMark) -> Number | None:
    """Return the number of a cell; None if the cell is no number with this decimal mark."""
    if not isinstance(cell, str):
        return Number(Decimal(repr(cell))) if math.isfinite(cell) else None
    text = cell.strip()
    digits = text.removesuffix("%").rstrip()
    if len(digits) > MAX_DIGITS or not NUMBER[decimal].fullmatch(digits):
        return None
    return Number(Decimal(digits.replace(",", ".")), is_percent=digits != text)


class Codes:
    """Set of codes of a mapping; a cell equals a code by text, as a number (1, `1.0`, `01`), or as a truth value.

    Texts are compared as `plain_text` returns them.

    Args:
        codes: texts, numbers and truth values of the mapping.
        decimal: decimal mark of the cells.
    """

    def __init__(self, codes: Iterable[Cell | bool], decimal: DecimalMark) -> None:
        self._decimal: DecimalMark = decimal
        self._keys: dict[str | Number, str] = {}
        for given in codes:
            code = str(given) if isinstance(given, bool) else given  # YAML's true and false
            text = cell_text(code)
            plain = plain_text(text)
            # YAML writes numbers with a point, whatever the mark of the table.
            number = cell_number(code, ".") or cell_number(code, decimal)
            for key in (plain, _truth_value(plain), number):
                if key is not None:
                    self._keys.setdefault(key, text)

    def match(self, cell: Cell) -> str | None:
        """Return the text of the code that the cell equals; None without one."""
        text = plain_text(cell_text(cell))
        if text in self._keys or not self._keys:
            return self._keys.get(text)
        key = _truth_value(text) or cell_number(cell, self._decimal)
        return None if key is None else self._keys.get(key)

    def __contains__(self, cell: Cell) -> bool:
        return self.match(cell) is not None


def _truth_value(text: str) -> str | None:
    """Return TRUE or FALSE as workbooks have them; pandas writes True, R true."""
    return text.upper() if text.upper() in ("TRUE", "FALSE") else None


def shown_number(value: float, number_format: str | None) -> Cell:
    """Return a workbook number as its cell shows it, with all digits.

    Args:
        value: stored number.
        number_format: format of the cell in the notation of Excel.

    Returns:
        The number if the format shows it, whatever the number of decimals and the grouping; text if the format adds
        zeros, a percent sign or other text; a `FaultyCell` if the format shows another value or none.
    """
    sections = _split_sections(number_format or "General")
    if value < 0 and len(sections) > 1:
        section, sign = sections[1], ""
    elif value == 0 and len(sections) > 2:
        section, sign = sections[2], ""
    else:
        section, sign = sections[0], "-" if value < 0 else ""
    if section.strip().casefold() in ("general", "@", "standard") or not abs(value) < EXACT_BELOW:
        return value
    tokens = _tokens(section)
    kinds = {kind for kind, _ in tokens}
    number = Decimal(repr(abs(value)))
    if "condition" in kinds or "digit" not in kinds or _is_scaled(tokens):
        return _other_value(value)
    number *= 100 ** sum(kind == "percent" for kind, _ in tokens)
    if kinds & {"point", "exponent", "fraction", "percent"} or number != int(number):
        shown = _with_decimals(number, tokens)
    else:
        shown = _with_digits(int(number), tokens)
    shown = (sign + shown).strip()
    if value < 0 and re.fullmatch(r"\((.*)\)", shown):
        shown = "-" + shown[1:-1].strip()
    plain = cell_number(shown, ".")
    if plain == Number(Decimal(repr(value))) and not re.match(r"[+-]?0\d", shown):
        return value
    is_unsigned = value < 0 and plain == Number(Decimal(repr(-value)))
    return _other_value(value) if is_unsigned or not re.search(r"\d", shown) else shown


def _other_value(value: float) -> FaultyCell:
    return faulty_cell(
        cell_text(value), "the number format of a cell in column {column!r} shows another value than the cell holds"
    )


def _split_sections(number_format: str) -> list[str]:
    """Split a format at the semicolons outside of quotes and escapes: positive; negative; zero; text."""
    sections = [""]
    for part in re.findall(r'"[^"]*"?|\\.?|[^"\\]', number_format, flags=re.DOTALL):
        if part == ";":
            sections.append("")
        else:
            sections[-1] += part
    return sections


TOKENS = re.compile(
    r"""(?P<quoted>"[^"]*"?) | \\(?P<escaped>.) | [_*]. | \[(?P<bracket>[^\]]*)\]
    | (?P<exponent>[eE][+-]\d*[0#?]*) | (?P<digit>[0#?]) | (?P<point>\.) | (?P<comma>,) | (?P<percent>%)
    | (?P<fraction>/) | (?P<other>.)""",
    re.VERBOSE,
)


def _tokens(section: str) -> list[tuple[str, str]]:
    """Return (kind, text) of the parts of a section; fill characters, colours and locales are left out."""
    tokens: list[tuple[str, str]] = []
    for match in TOKENS.finditer(section):
        kind = match.lastgroup
        if kind is None:
            continue
        text = match[kind]
        if kind == "bracket":
            if text[:1] in ("<", ">", "="):
                tokens.append(("condition", text))
            elif text.startswith("$") and (symbol := text[1:].split("-")[0]):
                tokens.append(("literal", symbol))
        elif kind in ("quoted", "escaped", "other"):
            tokens.append(("literal", text.strip('"') if kind == "quoted" else text))
        else:
            tokens.append((kind, text))
    return tokens


def _is_scaled(tokens: list[tuple[str, str]]) -> bool:
    """Return whether commas after the last digit of the integer or of the number divide it by thousands."""
    kinds = [kind for kind, _ in tokens if kind in ("digit", "comma", "point")]
    return any(a == "comma" and b != "digit" for a, b in zip(kinds, [*kinds[1:], "end"], strict=True))


def _with_decimals(number: Decimal, tokens: list[tuple[str, str]]) -> str:
    """Return a number with all its decimals between the texts of its format."""
    kinds = [kind for kind, _ in tokens]
    first, last = kinds.index("digit"), len(kinds) - 1 - kinds[::-1].index("digit")
    before = "".join(text for kind, text in tokens[:first] if kind == "literal")
    after = "".join(text for kind, text in tokens[last + 1 :] if kind in ("literal", "percent"))
    whole = tokens[first : kinds.index("point")] if "point" in kinds else tokens[first : last + 1]
    width = sum(text == "0" for _, text in whole)
    digits, _, decimals = f"{number:f}".partition(".")
    decimals = decimals.rstrip("0")
    return before + digits.zfill(width) + (f".{decimals}" if decimals else "") + after


def _with_digits(number: int, tokens: list[tuple[str, str]]) -> str:
    """Return the digits of a whole number at the places of its format, with the texts between them."""
    digits = list(str(number)) if number else []
    places = sum(kind == "digit" for kind, _ in tokens)
    shown = []
    for kind, text in reversed(tokens):
        if kind == "literal":
            shown.append(text)
        elif kind == "digit":
            places -= 1
            if not places:
                shown.append("".join(digits) or ("0" if text == "0" else ""))
            elif digits:
                shown.append(digits.pop())
            elif text == "0":
                shown.append("0")
    return "".join(reversed(shown))
