"""Reader of CSV files and workbooks; defects that would shift or lose values are reported."""

from __future__ import annotations

import random
import time
import zipfile
from datetime import date, datetime
from pathlib import Path

import openpyxl
import pytest

from tmi.toolkit.errors import TmiError, UsageError
from tmi.toolkit.ingest.tabular.cells import cell_text
from tmi.toolkit.ingest.tabular.cohort_importer import import_table
from tmi.toolkit.ingest.tabular.mapping import TableSpec
from tmi.toolkit.ingest.tabular.reader import STRAY_QUOTE, read_cells

MAPPING = (
    "schema: tmi-mapping/1\ncase_id: {column: id}\n"
    "fields: {albumin: {column: alb, unit: g/L}, sex: {column: sex, values: {f: female, m: male}}}\n"
)
WANTED = ("id", "alb", "sex")


def write_book(path: Path, rows: list[tuple[object, ...]], *, more_sheets: int = 0) -> Path:
    book = openpyxl.Workbook()
    assert book.active is not None
    for row in rows:
        book.active.append(row)
    for _ in range(more_sheets):
        book.create_sheet()
    book.save(path)
    return path


def texts(path: Path, spec: TableSpec | None = None) -> list[list[str]]:
    table = read_cells(path, spec or TableSpec(), wanted=WANTED)
    return [list(table.columns), *([cell_text(c) for c in row.cells] for row in table.rows)]


EXPECTED = [["id", "alb", "sex"], ["1", "38.5", "f"], ["2", "", "m"]]


@pytest.mark.parametrize(
    ("data", "spec"),
    [
        (b"id,alb,sex\n1,38.5,f\n2,,m\n", {}),
        (b"\xef\xbb\xbfid,alb,sex\r\n1,38.5,f\r\n2,,m\r\n", {}),
        (b"id;alb;sex\n1;38.5;f\n2;;m\n", {}),
        (b"id\talb\tsex\n1\t38.5\tf\n2\t\tm\n", {}),
        (b'"id","alb","sex"\n"1","38.5","f"\n"2","","m"\n\n,,\n', {}),
        (b" id , alb,sex \n 1, 38.5 ,f\n2,,m", {}),
        ("id;alb;sex\n1;38.5;f\n2;;m\n".encode("utf-16"), {}),
        (b"id|alb|sex\n1|38.5|f\n2||m\n", {"delimiter": "|"}),
    ],
    ids=["plain", "byte order mark", "semicolon", "tab", "quoted, empty rows", "spaces", "UTF-16", "named"],
)
def test_csv_dialects_give_the_same_table(tmp_path, data, spec):
    """Separators, byte order marks, quotes and spaces do not change the table."""
    (tmp_path / "t.csv").write_bytes(data)
    assert texts(tmp_path / "t.csv", TableSpec(**spec)) == EXPECTED


def test_workbook_equals_csv(tmp_path):
    """A workbook gives the same table as the CSV file."""
    path = write_book(tmp_path / "t.xlsx", [("id", "alb", "sex", None), (1, 38.5, "f"), ("2", None, "m"), (None,)])
    assert texts(path) == EXPECTED


def test_workbook_dates_and_booleans_become_text(tmp_path):
    """Dates become ISO text, booleans TRUE or FALSE, whole numbers have no decimals."""
    row = (1, datetime(2021, 1, 5, 7, 30), True)
    path = write_book(tmp_path / "t.xlsx", [WANTED, row, (2.0, date(2021, 1, 6), 0.5)])
    assert texts(path)[1:] == [["1", "2021-01-05", "TRUE"], ["2", "2021-01-06", "0.5"]]


def test_encoding_is_not_guessed(tmp_path):
    """Text in another encoding is an error unless the mapping names the encoding."""
    data = "id,alb,sex,Größe\n1,38.5,f,klein\n".encode("cp1252")
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(UsageError, match="is not text in utf-8") as error:
        texts(tmp_path / "t.csv")
    assert "cp1252" in error.value.fix
    assert texts(tmp_path / "t.csv", TableSpec(encoding="cp1252"))[0][-1] == "Größe"


@pytest.mark.parametrize(
    ("decimal", "cell", "albumin"),
    [(".", "38.5", 38.5), (",", "38,5", 38.5), (".", "38,5", None), (",", "38.5", None), (",", "1.038,5", None),
     (".", "38.5*", None), (".", "0x26", None), (".", "3_8", None), (".", "٣٨", None), (".", "3.85e1", 38.5)],
)  # fmt: skip
def test_unexpected_decimal_mark_is_rejected(tmp_path, decimal, cell, albumin):
    """A number with another decimal mark, digit grouping or other text is rejected, not misread."""
    (tmp_path / "t.csv").write_text(f"id;alb;sex\n1;{cell};f\n", encoding="utf-8")
    (tmp_path / "m.yaml").write_text(MAPPING + f"table: {{decimal: '{decimal}'}}\n")
    (line,) = import_table(tmp_path / "t.csv", tmp_path / "m.yaml", tmp_path / "out").lines
    assert (line.outcome, line.code) == (("imported", None) if albumin else ("refused", "number"))
    if albumin:
        assert f'"albumin": {albumin}' in (tmp_path / "out" / "1" / "clinical.json").read_text()


def test_formula_without_stored_value_rejects_row(tmp_path):
    """A formula without a stored value in a mapped column rejects the row."""
    path = write_book(
        tmp_path / "t.xlsx", [(*WANTED, "note"), (1, "=19*2", "f", None), (2, 38, "m", "=1+1"), (3, "#N/A", "m", None)]
    )
    (tmp_path / "m.yaml").write_text(MAPPING)
    lines = import_table(path, tmp_path / "m.yaml", tmp_path / "out").lines
    assert [(n.outcome, n.code) for n in lines] == [("refused", "row"), ("imported", None), ("refused", "number")]
    assert lines[0].why == "the workbook does not store the value of a formula in column 'alb'"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.csv", b"", "has no column 'id'"),
        ("t.csv", b"id,alb,sex\n", "has no row below its header"),
        ("t.csv", b"id,alb,sex\n,,\n", "has no row below its header"),
        ("t.csv", b"id,alb\n1,2\n", "has no column 'sex'"),
        ("t.csv", b"id,alb,sex,alb\n1,2,f,3\n", "has the column 'alb' twice"),
        ("t.csv", b'id,alb,sex\n1,"38.5"x,f\n', "is not valid CSV"),
        ("t.csv", b"id,alb,sex\n1," + b"9" * 200_000 + b",f\n", "is not valid CSV"),
        ("t.xlsx", b"id,alb,sex\n1,2,f\n", "is not an Excel workbook"),
        ("t.xlsx", b"", "is not an Excel workbook"),
    ],
)
def test_malformed_table_is_a_usage_error(tmp_path, name, data, message):
    """A malformed or incomplete table is a usage error with a fix."""
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=message) as error:
        texts(tmp_path / name)
    assert error.value.fix


def test_several_sheets_require_a_name(tmp_path):
    """A workbook with several sheets is an error unless the mapping names one."""
    path = write_book(tmp_path / "t.xlsx", [WANTED, (1, 38.5, "f"), (2, None, "m")], more_sheets=1)
    with pytest.raises(UsageError, match="has 2 sheets") as error:
        texts(path)
    assert "Sheet, Sheet1" in error.value.fix
    with pytest.raises(UsageError, match="no sheet 'Blood'"):
        texts(path, TableSpec(sheet="Blood"))
    assert texts(path, TableSpec(sheet="Sheet")) == EXPECTED


def test_oversized_workbook_is_rejected_before_unpacking(tmp_path, monkeypatch):
    """The unpacked size is checked before the workbook is read."""
    path = write_book(tmp_path / "t.xlsx", [WANTED, (1, 38.5, "f")])
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as parts:
        parts.writestr("xl/more.xml", b" " * 2_000_000)
    monkeypatch.setattr("tmi.toolkit.ingest.tabular.workbook_limits.MAX_UNPACKED_BYTES", 1_000_000)
    with pytest.raises(UsageError, match="unpacks to more than"):
        texts(path)


def test_missing_table_is_a_usage_error(tmp_path):
    """A table that does not exist is a usage error."""
    with pytest.raises(UsageError, match="does not exist"):
        texts(tmp_path / "t.csv")


@pytest.mark.parametrize("kind", ["csv", "xlsx", "yaml"])
def test_damaged_input_yields_typed_error(tmp_path, kind):
    """Damaged tables and mappings yield a typed error or a complete report."""
    rows: list[tuple[object, ...]] = [WANTED, *((n, 30 + n / 7, "fm"[n % 2]) for n in range(12))]
    good = {
        "csv": "\n".join(",".join(map(str, row)) for row in rows).encode(),
        "xlsx": write_book(tmp_path / "good.xlsx", rows).read_bytes(),
        "yaml": MAPPING.encode(),
    }
    random_ = random.Random(11)
    for trial in range(60):
        data = bytearray(good[kind])
        if trial % 3 == 0:
            data = data[: random_.randrange(len(data))]
        else:
            for _ in range(random_.choice((1, 3, 12))):
                data[random_.randrange(len(data))] = random_.randrange(256)
        folder = tmp_path / str(trial)
        folder.mkdir()
        table, mapping = folder / f"t.{'xlsx' if kind == 'xlsx' else 'csv'}", folder / "m.yaml"
        table.write_bytes(good["csv"] if kind == "yaml" else data)
        mapping.write_bytes(data if kind == "yaml" else good["yaml"])
        start = time.monotonic()
        try:
            report = import_table(table, mapping, folder / "out")
        except TmiError:
            assert not (folder / "out").exists()
        else:
            assert sum(report.counts.values()) == len(report.lines)
        assert time.monotonic() - start < 10


def test_unknown_compression_method_is_a_usage_error(tmp_path):
    """A workbook with an unknown compression method is a usage error."""
    import openpyxl

    path = tmp_path / "t.xlsx"
    openpyxl.Workbook().save(path)
    data = bytearray(path.read_bytes())
    start = 0
    while (start := data.find(b"PK\x01\x02", start)) >= 0:  # every entry of the central directory
        data[start + 10] = 99
        start += 4
    path.write_bytes(data)
    with pytest.raises(UsageError):
        read_cells(path, TableSpec(), wanted=WANTED)


@pytest.mark.parametrize(
    ("bad", "lost"),
    [
        ('P2,"30,f', {3}),
        ('P2,30,"f', {3}),
        ('"P2,30,f', {3}),
        ('P2,"3"0,f', {3}),
        ('P2,"30,f\n"P3,31,m', {3, 4}),
    ],
)
def test_stray_quotation_mark_loses_its_row_alone(tmp_path, bad, lost):
    """A row with a quotation mark that is not closed is a faulty row; those before and after it are read."""
    path = tmp_path / "t.csv"
    path.write_text(f'id,alb,sex\nP1,"3\n8",m\n{bad}\nP8,40,f\nP9,"4,1",m\n')
    table = read_cells(path, TableSpec(), wanted=WANTED)
    faults = {row.number: row.fault for row in table.rows if row.fault}
    assert set(faults) == lost
    assert set(faults.values()) == {STRAY_QUOTE}
    assert [cell_text(r.cells[0]) for r in table.rows if not r.fault] == ["P1", "P8", "P9"]
    assert [cell_text(r.cells[1]) for r in table.rows if not r.fault] == ["3\n8", "40", "4,1"]


def test_text_of_quotation_marks_is_rejected_at_once(tmp_path):
    """A table of stray marks alone is no table, and the attempt to read it is short."""
    path, start = tmp_path / "t.csv", time.monotonic()
    path.write_text("id,alb,sex\n" + '"' + '\n"x' * 200_001)
    with pytest.raises(UsageError, match="a quotation mark is not closed"):
        read_cells(path, TableSpec(), wanted=WANTED)
    assert time.monotonic() - start < 5
