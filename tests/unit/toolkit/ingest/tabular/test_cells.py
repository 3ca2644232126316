"""Cells of both readers: codes are compared as numbers, and number formats of workbooks are followed."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import openpyxl
import pytest

from tmi.toolkit.errors import UsageError
from tmi.toolkit.ingest.tabular.cells import Codes, FaultyCell, cell_number, shown_number
from tmi.toolkit.ingest.tabular.cohort_importer import import_table
from tmi.toolkit.ingest.tabular.report import TableReport

MAPPING = """schema: tmi-mapping/1
table: {missing: [-9, 999]}
case_id: {column: Nr, prefix: K}
fields:
  alt: {column: ALT, unit: U/L}
  sex: {column: sex, values: {1: female, 2: male, 9: null}}
label:
  rules:
    - {label: bad, when: [{column: died, one_of: [1]}]}
    - {label: good, when: [{column: died, not_one_of: [1]}]}
"""
HEADER = ("Nr", "ALT", "sex", "died")
ROWS = [("A", 38, 1, 1), ("B", 41, 2, 0), ("C", 999, 9, 0), ("D", -9, -9, 1)]


def write_book(path: Path, rows: list[tuple[object, ...]], formats: dict[str, str] | None = None) -> Path:
    book = openpyxl.Workbook()
    assert book.active is not None
    for row in rows:
        book.active.append(row)
    for place, number_format in (formats or {}).items():
        book.active[place].number_format = number_format
    book.save(path)
    return path


def imported(folder: Path, table: Path, mapping: str = MAPPING) -> TableReport:
    (folder / "m.yaml").write_text(mapping)
    return import_table(table, folder / "m.yaml", folder / "out")


def cohort_of(folder: Path) -> tuple[str, dict[str, object]]:
    cases = {p.name: json.loads((p / "clinical.json").read_text())["values"] for p in folder.iterdir() if p.is_dir()}
    return (folder / "cohort.csv").read_text(), cases


EXPECTED = (
    "case_id,patient_id,label\nKA,KA,bad\nKB,KB,good\nKC,KC,good\nKD,KD,bad\n",
    {"KA": {"alt": 38.0, "sex": "female"}, "KB": {"alt": 41.0, "sex": "male"}, "KC": {}, "KD": {}},
)


@pytest.mark.parametrize("form", ["{}", "{}.0", "{}.", "{:03d}", "+{}", "{}e0", " {}.00 "])
def test_codes_in_csv_are_compared_as_numbers(form, tmp_path):
    """Codes select, exclude, map and mark missing values however CSV writes their number."""
    lines = [HEADER, *((name, *(form.format(n) if n >= 0 else f"{n}.0" for n in codes)) for name, *codes in ROWS)]
    (tmp_path / "t.csv").write_text("".join(",".join(line) + "\n" for line in lines))
    imported(tmp_path, tmp_path / "t.csv")
    assert cohort_of(tmp_path / "out") == EXPECTED


def test_codes_in_workbook_equal_those_in_csv(tmp_path):
    """Numbers and texts of numbers in a workbook give the same cohort as CSV."""
    rows = [HEADER, ROWS[0], tuple(map(str, ROWS[1])), ROWS[2], tuple(f"{v}.0" if v != "D" else v for v in ROWS[3])]
    imported(tmp_path, write_book(tmp_path / "t.xlsx", rows))
    assert cohort_of(tmp_path / "out") == EXPECTED


def test_codes_follow_the_decimal_mark(tmp_path):
    """With a decimal comma `1,0` equals the code 1, and `-9,5` the missing code -9.5."""
    (tmp_path / "t.csv").write_text("Nr;ALT;sex;died\nA;38,0;1,0;1,0\nB;-9,5;2,0;0,0\n")
    imported(tmp_path, tmp_path / "t.csv", MAPPING.replace("[-9, 999]", "[-9.5], decimal: ','"))
    cohort, cases = cohort_of(tmp_path / "out")
    assert cohort.endswith("KA,KA,bad\nKB,KB,good\n")
    assert cases == {"KA": {"alt": 38.0, "sex": "female"}, "KB": {"sex": "male"}}


def test_text_codes_and_long_codes_stay_apart():
    """Exact text comes first, other text equals itself alone, and long codes differ in their last digit."""
    codes = Codes(["01", 2, "n.b.", "12345678901234567890", "TRUE"], ".")
    assert [codes.match(c) for c in ("01", "1", 1.0, "2.0", "n.b.", "N.B.", "2%", "")] == [
        "01", "01", "01", "2", "n.b.", None, None, None,
    ]  # fmt: skip
    assert "12345678901234567891" not in codes
    assert [c in codes for c in ("True", "true", "False")] == [True, True, False]
    assert "" not in Codes([], ".")


def test_one_number_with_two_meanings_is_rejected(tmp_path):
    """A map that gives 1 and 01 different values is a usage error."""
    (tmp_path / "t.csv").write_text("Nr,ALT,sex,died\nA,1,1,1\n")
    with pytest.raises(UsageError, match="the number '01' twice"):
        imported(tmp_path, tmp_path / "t.csv", MAPPING.replace("2: male", "'01': male"))


@pytest.mark.parametrize(
    ("value", "number_format", "shown"),
    [
        (35.0, "General", 35.0), (35.0, None, 35.0), (35.0, "@", 35.0), (12.4, "0", 12.4), (1234.5, "#,##0.00", 1234.5),
        (-5.0, "#,##0.00_);(#,##0.00)", -5.0), (0.5, "# ?/?", 0.5), (12345.0, "0.00E+00", 12345.0),
        (5.0, "[Red]0", 5.0), (-5.0, '_-* #,##0.00_-;-* #,##0.00_-;_-* "-"??_-', -5.0),
        (0.35, "0%", "35%"), (0.1234567, "0%", "12.34567%"), (-0.5, "0.0%", "-50%"), (0.28, "0%;[Red]-0%", "28%"),
        (35.0, '0"%"', "35%"), (35.0, "0\\%", "35%"), (3.8, '0.0" g/dL"', "3.8 g/dL"),
        (5.0, "[$\u20ac-407]0", "\u20ac5"), (123.0, "00000", "00123"), (12.0, '"K"000', "K012"),
        (123456789.0, "000-00-0000", "123-45-6789"), (1.5, "00.0", "01.5"),
    ],
)  # fmt: skip
def test_number_format_is_followed(value, number_format, shown):
    """A number becomes what its cell shows, with all digits; decimals and grouping change nothing."""
    cell = shown_number(value, number_format)
    assert (cell, type(cell)) == (shown, type(shown))


@pytest.mark.parametrize(
    ("value", "number_format"),
    [(3800.0, "0.0,"), (3800.0, "#,##0,"), (5.0, ";;;"), (1.0, '[=1]"yes";[=2]"no"'), (-5.0, "0;0"), (0.0, '0;-0;"-"')],
)
def test_format_that_shows_another_value_is_a_fault(value, number_format):
    """A scaled, hidden, unsigned or replaced number is no usable cell."""
    assert isinstance(shown_number(value, number_format), FaultyCell)


PERCENT = (
    "schema: tmi-mapping/1\ncase_id: {{column: Nr}}\nfields: {{vat_volume_fraction: {{column: VAT, unit: '{}'}}}}\n"
)


@pytest.mark.parametrize("unit", ["%", "fraction"])
@pytest.mark.parametrize("kind", ["xlsx", "csv"])
def test_percentage_is_read_as_shown(kind, unit, tmp_path):
    """35 % is 35 % in a workbook and in CSV, whether the mapping names percent or fraction."""
    rows: list[tuple[object, ...]] = [("Nr", "VAT"), ("A", 0.35), ("B", "35 %")]
    if kind == "xlsx":
        table = write_book(tmp_path / "t.xlsx", rows, {"B2": "0.0%"})
    else:
        table = tmp_path / "t.csv"
        table.write_text("Nr,VAT\nA,35%\nB,35 %\n")
    report = imported(tmp_path, table, PERCENT.format(unit))
    assert report.counts["imported"] == 2
    for name in ("A", "B"):
        values = json.loads((tmp_path / "out" / name / "clinical.json").read_text())["values"]
        assert values == {"vat_volume_fraction": 35.0}


def test_percentage_of_another_unit_is_rejected(tmp_path):
    """A percent cell in a column of another unit, and in a rule about a number, rejects its row."""
    table = write_book(tmp_path / "t.xlsx", [HEADER, ("A", 0.38, 1, 1), ("B", 38, 1, 1)], {"B2": "0%"})
    line, other = imported(tmp_path, table).lines
    assert (line.outcome, line.code, other.outcome) == ("refused", "number", "imported")
    assert line.why == "column 'ALT' holds a percentage, which needs the unit % or fraction in the mapping"


def test_scaled_cell_rejects_its_row_by_name(tmp_path):
    """A number format that shows thousands rejects the row and names the column; unmapped columns do not matter."""
    rows: list[tuple[object, ...]] = [(*HEADER, "note"), ("A", 38000, 1, 1, 1), ("B", 38, 1, 1, 2000)]
    table = write_book(tmp_path / "t.xlsx", rows, {"B2": "0,", "E3": "0,"})
    line, other = imported(tmp_path, table).lines
    assert (line.case_id, line.outcome, line.code, other.outcome) == ("KA", "refused", "row", "imported")
    assert line.why == "the number format of a cell in column 'ALT' shows another value than the cell holds"


def test_padded_id_is_the_id_that_is_shown(tmp_path):
    """Ids with leading zeros or text in their format keep them."""
    rows: list[tuple[object, ...]] = [HEADER, (7, 38, 1, 1), (8, 38, 1, 0), ("0009", 38, 1, 0)]
    imported(tmp_path, write_book(tmp_path / "t.xlsx", rows, {"A2": "0000", "A3": '"X-"00'}))
    assert sorted(cohort_of(tmp_path / "out")[1]) == ["K0007", "K0009", "KX-08"]


@pytest.mark.parametrize(
    ("cell", "number_format", "message"),
    [
        (1234567890123456, "0", "a number of more than 15 digits"),
        (1234567890123456, "00000000000000000000", "a number of more than 15 digits"),
        (44200, "yyyy-mm-dd", "was turned into a date"),
        (0.127, "hh:mm", "was turned into a date"),
        (1.5, "[h]:mm:ss", "was turned into a date"),
    ],
)
def test_id_that_the_workbook_changed_is_rejected(cell, number_format, message, tmp_path):
    """Ids whose digits a workbook loses, or which it turned into dates, reject their row."""
    (line,) = imported(
        tmp_path, write_book(tmp_path / "t.xlsx", [HEADER, (cell, 38, 1, 1)], {"A2": number_format})
    ).lines
    assert (line.outcome, line.code) == ("refused", "id")
    assert message in str(line.why)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("1e+05", "scientific notation"),  # as R writes 100000
        ("1.2345678901234568e+19", "scientific notation"),
        ("17.0", "a whole number with a decimal"),
        ("#REF!", "the error of a formula"),
        ("#n/a", "the error of a formula"),
    ],
)
def test_id_that_another_program_changed_is_rejected(cell, message, tmp_path):
    """Ids that R, pandas or a failed formula changed in a CSV file reject their row."""
    (tmp_path / "t.csv").write_text(f"Nr,ALT,sex,died\n{cell},38,1,1\n17,38,1,1\n")
    line, other = imported(tmp_path, tmp_path / "t.csv").lines
    assert (line.outcome, line.code, other.outcome) == ("refused", "id", "imported")
    assert message in str(line.why)


@pytest.mark.parametrize("merged", ["B2:B3", "B3:C3", "D2:D3"])
def test_merged_cell_rejects_the_row_without_its_value(merged, tmp_path):
    """A cell of a merged range that has no value of its own is no missing value; its row is rejected by name."""
    write_book(tmp_path / "t.xlsx", [HEADER, (1, 38, 1, 1), (2, 38, 1, 1), (3, 38, 1, 1)], {})
    book = openpyxl.load_workbook(tmp_path / "t.xlsx")
    book.active.merge_cells(merged)
    book.save(tmp_path / "t.xlsx")
    first, second, third = imported(tmp_path, tmp_path / "t.xlsx").lines
    assert (first.outcome, second.outcome, third.outcome) == ("imported", "refused", "imported")
    assert (second.row, second.code) == (3, "row")
    assert "is merged with another one" in str(second.why)


def test_empty_row_of_a_merged_range_is_no_row(tmp_path):
    """A row that holds nothing but merged cells is empty."""
    write_book(tmp_path / "t.xlsx", [HEADER, (1, 38, 1, 1)], {})
    book = openpyxl.load_workbook(tmp_path / "t.xlsx")
    for column in "ABCD":
        book.active.merge_cells(f"{column}2:{column}3")
    book.save(tmp_path / "t.xlsx")
    (line,) = imported(tmp_path, tmp_path / "t.xlsx").lines
    assert line.outcome == "imported"


def test_shortened_id_in_csv_is_rejected(tmp_path):
    """An id in scientific notation lost digits on its way to CSV; a long id as text is kept."""
    (tmp_path / "t.csv").write_text("Nr,ALT,sex,died\n1.23457E+11,38,1,1\n12345678901234567,38,1,1\n")
    line, other = imported(tmp_path, tmp_path / "t.csv").lines
    assert (line.code, other.case_id, other.outcome) == ("id", "K12345678901234567", "imported")
    assert "scientific notation" in str(line.why)


def test_numbers_are_exact_and_bounded():
    """Numbers keep their digits; endless ones and infinity are none."""
    number = cell_number("0.10", ".")
    assert number is not None
    assert (number.value, number.is_percent) == (Decimal("0.1"), False)
    assert cell_number("9" * 500, ".") is None
    assert cell_number(float("inf"), ".") is None
    assert cell_number("1e99999999999999999999", ".") is None


def test_half_a_surrogate_pair_rejects_its_row_alone(tmp_path):
    """UTF-7 can hold half a surrogate pair, which no record can hold; in a heading it is escaped."""
    (tmp_path / "t.csv").write_bytes(b"Nr,ALT,sex,died,note +2D0-\nA,38,1+2D0-,1,\nB,38,1,1,\n")
    mapping = MAPPING.replace("table: {", "table: {encoding: utf-7, ", 1)
    line, other = imported(tmp_path, tmp_path / "t.csv", mapping).lines
    assert (line.outcome, line.code, other.outcome) == ("refused", "row", "imported")
    assert line.why == "a cell in column 'sex' contains half of a surrogate pair, which is no character"
    assert "note \\ud83d" in json.loads((tmp_path / "out" / "import-report.json").read_text())["columns"]
