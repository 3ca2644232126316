"""Tables on a wide and a narrow terminal, without colours and without letters beyond ASCII."""

from __future__ import annotations

import io

import pytest

from tmi.toolkit.cli.console import PIPED_WIDTH, make_console
from tmi.toolkit.cli.listing import Column, Listing, print_listing

CASES = ("PATIENT-00001", "P2", "liver_3")
FIVE = "0.123 0.234 0.345 0.456 0.567"
COLUMNS = (
    Column("case"),
    Column("decision"),
    Column("p(good)", right=True, drop=3),
    Column("p(bad)", right=True),
    Column("spread", right=True, drop=4),
    Column("each fold", right=True, drop=1),
    Column("seconds", right=True, drop=2),
    Column("notes", wrap=True),
)
ROWS = [(case, "bad", "0.1111", "0.8889", "0.0123", FIVE, "1.23", "text-truncated, ct-blurred") for case in CASES]
REJECTED = ("P9", "rejected", "-", "-", "-", "-", "-", "ct-missing")
LISTING = Listing(columns=COLUMNS, rows=[*ROWS, REJECTED], title="Prognosis: mean of 5 fold models")


@pytest.fixture
def printed(monkeypatch):
    """Function that prints a listing at a width and returns the text."""

    def run(listing: Listing, columns: int | None, **environment: str) -> str:
        for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        if columns is not None:
            monkeypatch.setenv("COLUMNS", str(columns))
        stream = io.StringIO()
        print_listing(make_console(file=stream), listing)
        return stream.getvalue()

    return run


@pytest.mark.parametrize("columns", [20, 30, 40, 60, 80, 100, PIPED_WIDTH])
def test_cases_and_decisions_are_whole_at_every_width(printed, columns):
    """At every width no line is longer, and each case, decision, probability and note is in one piece."""
    lines = printed(LISTING, columns).splitlines()
    assert max(map(len, lines)) <= columns
    words = " ".join(lines).replace("│", " ").split()
    for word in (*CASES, "P9", "0.8889") if columns < 40 else (*CASES, "P9", "0.8889", "rejected", "ct-missing"):
        assert word in words
    assert words.count("bad") == len(CASES)


def test_table_has_every_column_where_it_fits(printed):
    """A file gets the whole table with the five folds."""
    text = printed(LISTING, None)
    assert text.count(FIVE) == len(CASES)
    assert "not shown" not in text


def test_80_columns_leave_out_the_marked_columns(printed):
    """At 80 columns the first marked columns are left out, and a line names them and the width that shows them."""
    text = printed(LISTING, 80)
    assert FIVE not in text
    (line,) = (line for line in text.splitlines() if line.startswith("not shown"))
    needed = int(line.split("COLUMNS=")[1].split()[0])
    assert line == f"not shown: each fold; COLUMNS={needed} shows all"
    assert FIVE in printed(LISTING, needed)
    assert FIVE not in printed(LISTING, needed - 1)


def test_40_columns_give_a_block_for_each_case(printed):
    """At 40 columns each case heads its values, the five folds included; a value without content is left out."""
    lines = printed(LISTING, 40).splitlines()
    assert [line for line in lines if line in (*CASES, "P9")] == [*CASES, "P9"]
    assert " ".join(word for line in lines[lines.index("P2") :] for word in line.split()).startswith(
        f"P2 decision bad p(good) 0.1111 p(bad) 0.8889 spread 0.0123 each fold {FIVE} seconds 1.23"
    )
    assert [line.split() for line in lines[lines.index("P9") + 1 :]] == [
        ["decision", "rejected"],
        ["notes", "ct-missing"],
    ]


def test_totals_stand_below_the_rows(printed):
    """Means follow the rows in a table and in blocks."""
    columns = (Column("fold"), *(Column(f"metric {k}", right=True) for k in range(5)))
    rows = [(str(k), *["0.5"] * 5) for k in range(5)]
    listing = Listing(columns=columns, rows=rows, totals=[("mean", *["0.5"] * 5)])
    for width in (80, 40):
        lines = [line.strip(" │") for line in printed(listing, width).splitlines()]
        starts = [line.split()[0] for line in lines if line and line.split()[0] in ("0", "4", "mean")]
        assert starts == ["0", "4", "mean"]


def test_row_of_two_keys_is_headed_by_both(printed):
    """A block is headed by all keys of its row."""
    columns = (Column("engine"), Column("check"), *(Column(f"number {k}", right=True) for k in range(6)))
    listing = Listing(columns=columns, rows=[("onnx", "logits", *"123456")], keys=2)
    assert printed(listing, 40).splitlines()[0] == "onnx logits"


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["NO_COLOR", "dumb"])
def test_colours_are_left_out(monkeypatch, environment):
    """NO_COLOR takes the colours of a terminal; TERM=dumb every control sequence, and COLUMNS holds there too."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for name, value in ({"TERM": "xterm-256color", "COLUMNS": "40"} | environment).items():
        monkeypatch.setenv(name, value)
    stream = Terminal()
    console = make_console(file=stream)
    console.print("attention", style="bold red")
    print_listing(console, LISTING)
    assert console.width == 40
    assert "\x1b[31" not in stream.getvalue()
    assert "\x1b[1;31" not in stream.getvalue()
    if environment == {"TERM": "dumb"}:
        assert "\x1b" not in stream.getvalue()


def test_output_in_ascii_has_no_other_letters(monkeypatch):
    """Rules of a table are written in ASCII if the encoding has nothing else."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.delenv("COLUMNS", raising=False)
    for columns in (PIPED_WIDTH, 80):
        print_listing(make_console(file=stream, width=columns), LISTING)
    stream.flush()
    assert b"PATIENT-00001" in stream.buffer.getvalue()


@pytest.mark.parametrize("text", ["", "0", "-5", "wide", "4e1"])
def test_useless_columns_are_ignored(monkeypatch, text):
    """A COLUMNS that is no positive whole number is as if it were not set."""
    monkeypatch.setenv("COLUMNS", text)
    assert make_console(file=io.StringIO()).width == PIPED_WIDTH
