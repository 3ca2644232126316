"""CSV files: no cell is run as a formula by a spreadsheet program, and every text is read as it was written."""

from __future__ import annotations

import ast
import csv
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factories.paths import ROOT
from tmi.toolkit.cases.case import open_cohort
from tmi.toolkit.ingest.tabular.cohort_importer import import_table
from tmi.toolkit.storage.csv_files import csv_records, csv_text, escape_cell, unescape_cell

FORMULAS = [
    "=1+1", "=cmd|' /C calc'!A0", "+1+1", "-1+1", "@SUM(A1)", "\t1", "\r1+1", "\n1", " =1+1", "\uff1d1+1", "--1",
    "-x", "\r", "\ufeff=1", "\u200b=1", "\x00=1", "\x1f+1", "\ufe66=1",
]  # fmt: skip
PLAIN = ["P001", "a=b", "", "-", "'", "-0.5", "+49", "1e-5", "-1.5E+3", "-inf", "nan", "it's", "''"]


@pytest.mark.parametrize("text", FORMULAS)
def test_text_like_a_formula_is_escaped(text):
    """Text that a spreadsheet program would run gets an apostrophe, in the header too."""
    header, row = csv.reader(io.StringIO(csv_text([text], [[text]]), newline=""))
    assert header == row == ["'" + text]
    assert csv_records(csv_text(["id"], [[text]])) == [{"id": text}]


@pytest.mark.parametrize("text", PLAIN)
def test_other_text_and_numbers_are_unchanged(text):
    """Numbers, also as text, and harmless text are written as they are."""
    assert escape_cell(text) == unescape_cell(text) == text


@pytest.mark.parametrize(
    ("text", "written"),
    [("a;=1+1;b", "a;'=1+1;b"), ("\t=1", "'\t'=1"), ("a\n@x", "a\n'@x"), ("a; -1", "a;' -1"), ("a;'=1", "a;''=1")],
)
def test_formula_after_another_separator_is_escaped(text, written):
    """A program that takes `;` or a tab for the separator finds no formula inside of a text."""
    assert escape_cell(text) == written
    assert csv_records(csv_text(["id"], [[text]])) == [{"id": text}]


@given(st.text(st.sampled_from("=-'; \t\r\na\ufeff"), max_size=12))
def test_escaped_text_is_read_as_written(text):
    """Escaping is undone for every mixture of separators, blanks, signs and apostrophes, and leaves no formula."""
    written = str(escape_cell(text))
    assert unescape_cell(written) == text
    assert not any(cell.strip("\ufeff ")[:1] in ("=", "-") for cell in re.split("[;\t\r\n]", written)[1:])


def test_cells_keep_their_values():
    """None is empty, and floats keep all digits."""
    assert csv_text(("a", "b", "c"), [(None, 0.1 + 0.2, -3)]) == "a,b,c\n,0.30000000000000004,-3\n"


@given(st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=2, max_size=2), max_size=5))
def test_every_text_is_read_as_written(rows):
    """Escaping is undone by the reader for every text, apostrophes included."""
    records = csv_records(csv_text(("a", "b"), rows))
    assert [[r["a"], r["b"]] for r in records] == rows


@given(st.sampled_from("=+-@\t\r\n'\uff1d "), st.text(st.characters(exclude_categories=["Cs"])))
def test_no_cell_starts_a_formula(first, rest):
    """No written text starts with the sign of a formula, unless it is a number."""
    cell = str(escape_cell(first + rest))
    starts = cell.lstrip(" ")[:1] in tuple("=+-@\t\r\n\uff1d") and len(cell.lstrip(" ")) > 1
    assert not starts or cell.lstrip("+-").replace(".", "").replace("e", "").isalnum()


def test_malformed_table_is_an_error():
    """A row with another number of cells is an error."""
    with pytest.raises(ValueError, match="zip"):
        csv_records("a,b\n1\n")


def test_imported_case_ids_are_escaped_and_found(tmp_path):
    """A case id like a formula is escaped in cohort.csv and the report, and opened by its own name."""
    (tmp_path / "t.csv").write_text("id,sex,died\n=1+1,f,1\n-2+3,f,0\n+7x,q,0\n")
    (tmp_path / "m.yaml").write_text(
        "schema: tmi-mapping/1\ncase_id: {column: id}\nfields: {sex: {column: sex, values: {f: female}}}\n"
        "label: {column: died, values: {1: bad, 0: good}}\n"
    )
    import_table(tmp_path / "t.csv", tmp_path / "m.yaml", tmp_path / "out", accept_losses=True)
    assert (tmp_path / "out" / "cohort.csv").read_text().splitlines()[1:] == ["'=1+1,'=1+1,bad", "'-2+3,'-2+3,good"]
    assert "4,'+7x,refused" in (tmp_path / "out" / "import-report.csv").read_text()
    cases = open_cohort(tmp_path / "out").cases
    assert [(c.case_id, c.patient_id, c.folder.is_dir()) for c in cases] == [
        ("=1+1",) * 2 + (True,),
        ("-2+3",) * 2 + (True,),
    ]


def test_every_csv_file_has_one_writer():
    """No other module of the packages writes CSV by itself."""
    writers = []
    for path in (p for name in ("toolkit", "runtime", "training", "export") for p in (ROOT / name).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("csv.writer", "csv.DictWriter"):
                writers.append(path.relative_to(ROOT).as_posix())
    assert writers == ["toolkit/tmi/toolkit/storage/csv_files.py"]
