"""Sources of a mapping: which columns of a spreadsheet give ids, fields, dates, labels and files, and by which rules.

Column names are plain text (`tmi.toolkit.storage.csv_files.plain_text`), as in the table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from tmi.toolkit.errors import UsageError
from tmi.toolkit.ingest.tabular.cells import Number, cell_number
from tmi.toolkit.storage.csv_files import plain_text

Code = str | float | bool
"""Code of a mapping, with which cells are compared."""
UNLABELLED = "the mapping gives this row no label"
"""Reason for excluding a row, where the mapping states none."""


def _require_distinct(values: dict[str, Any]) -> None:
    """Reject two codes that are one number (`1` and `01`) and stand for different values."""
    by_number: dict[Number, Any] = {}
    for code, value in values.items():
        number = cell_number(code, ".")
        require(
            number is None or by_number.setdefault(number, value) == value,
            f"values names the number {code[:40]!r} twice, with different meanings",
            "name each number once: 1, 1.0 and 01 are the same code",
        )


def _normalise(source: Any, *names: str) -> None:
    """Replace the column names of a source by their plain text, as the reader of the table does."""
    for name in names or ("column",):
        if getattr(source, name) is not None:
            object.__setattr__(source, name, plain_text(getattr(source, name)))


def require(holds: bool, what: str, fix: str) -> None:
    """Raise a usage error about the mapping unless a condition holds."""
    if not holds:
        raise UsageError(f"mapping: {what}", fix=fix)


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """Format of the table's cells."""

    missing: tuple[Code, ...] = ()
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

    column: str | None = None
    """Column; None: the number of the row, for a case id only."""
    prefix: str = ""
    """Prefix added to the text of the cell."""

    def __post_init__(self) -> None:
        _normalise(self)


@dataclass(frozen=True, kw_only=True)
class OtherUnit:
    """Unit of the numbers of a column beyond a bound."""

    unit: str
    """Unit of these numbers."""
    above: float | None = None
    """Numbers greater than this are in the unit."""
    below: float | None = None
    """Numbers less than this are in the unit."""

    def __post_init__(self) -> None:
        require(
            (self.above is None) != (self.below is None),
            "an entry of other_units has both or neither of above and below",
            "write {above: 1500, unit: /uL}",
        )

    def applies(self, number: float) -> bool:
        """Return whether a number of the column is in this unit."""
        return (self.above is not None and number > self.above) or (self.below is not None and number < self.below)


@dataclass(frozen=True, kw_only=True)
class FieldSource:
    """Source of a clinical field: a column, or one value for every row."""

    column: str | None = None
    """Column."""
    unit: str | None = None
    """Unit of the column; required for every number with a unit."""
    values: dict[str, str | float | None] = field(default_factory=dict)
    """Code -> value, for example `f: female`; null means missing. A choice accepts no other text."""
    missing: tuple[Code, ...] = ()
    """Codes of a missing value in this column, in addition to those of the table."""
    decimal: Literal[".", ","] | None = None
    """Decimal mark of this column; None uses that of the table."""
    fixed: str | float | None = None
    """Value of every row."""
    other_units: tuple[OtherUnit, ...] = ()
    """Units of the numbers beyond a bound, where a column mixes two units; the first that applies is used."""
    outside: Literal["rejected", "missing"] = "rejected"
    """What a number outside the field's plausible range is: a reason to reject the row, or a missing value."""

    def __post_init__(self) -> None:
        _normalise(self)
        _require_distinct(self.values)
        require(
            (self.column is None) != (self.fixed is None),
            "a field has both or neither of column and fixed",
            "give either a column, or one fixed value for every row",
        )
        require(
            self.fixed is None
            or not (self.values or self.missing or self.decimal or self.other_units or self.outside == "missing"),
            "a fixed value has values, missing, decimal, other_units or outside",
            "omit them: a fixed value is not read from the table",
        )


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """Source of free text."""

    column: str
    """Column."""

    def __post_init__(self) -> None:
        _normalise(self)


@dataclass(frozen=True, kw_only=True)
class DateSource:
    """Source of a date; of blood and CT dates only the distance in days is stored."""

    column: str
    """Column."""
    format: Literal["iso", "day-month-year", "month-day-year"] = "iso"
    """Order of the parts of a date stored as text; workbook dates are recognised in any case."""

    def __post_init__(self) -> None:
        _normalise(self)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Condition on a column; all tests that are given must hold."""

    column: str
    """Column."""
    one_of: tuple[Code, ...] | None = None
    """The cell equals one of these codes."""
    not_one_of: tuple[Code, ...] | None = None
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
        _normalise(self)
        tests = (self.one_of, self.not_one_of, self.above, self.at_least, self.below, self.at_most)
        require(
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
        require(
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
    otherwise: str = UNLABELLED
    """Reason for excluding a row that no rule applies to, or that a value excludes."""

    def __post_init__(self) -> None:
        _normalise(self)
        _require_distinct(self.values)
        require(
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
        _normalise(self, "ct", "mask", "radiomics", "series")
        require(
            self.mask_label is None or self.roi is None,
            "images has both mask_label and roi",
            "give mask_label for label maps and SEG, or roi for RTSTRUCT",
        )
