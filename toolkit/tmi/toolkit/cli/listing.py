"""Tables that stay readable on a narrow terminal: fewer columns, or one block for each row.

A table is printed with every column if the console is wide enough. Otherwise the rules between its columns go, then the
columns that its author marked, and a line names them. If the others do not fit either, each row becomes a block with
all its values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tmi.toolkit.storage.terminal_text import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

UNLIMITED = 100_000
"""Width, in columns, in which every table fits."""


@dataclass(frozen=True)
class Column:
    """Column of a table."""

    title: str
    """Heading; name of the value in a block."""
    right: bool = False
    """Whether it is aligned to the right, as numbers are."""
    wrap: bool = False
    """Whether its words may be wrapped."""
    drop: int = 0
    """Order in which columns are left out on a narrow console, 1 first; 0: the column always stays."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A table, apart from the way in which it is printed."""

    columns: Sequence[Column]
    """The columns."""
    rows: Sequence[Sequence[str]]
    """One text for each column."""
    title: str = ""
    """Line above the table."""
    keys: int = 1
    """Number of the first columns, which name a row: the heading of its block."""
    totals: Sequence[Sequence[str]] = ()
    """Rows below a rule, for example means."""


def print_listing(console: Console, listing: Listing) -> None:
    """Print a table as wide as the console allows."""
    from rich.text import Text

    if listing.title:
        console.print(Text(printable(listing.title), style="italic"))
    every = range(len(listing.columns))
    dropped = sorted((k for k in every if listing.columns[k].drop), key=lambda k: listing.columns[k].drop)
    for ruled, left_out in ((True, 0), *((False, n) for n in range(len(dropped) + 1))):
        kept = [k for k in every if k not in dropped[:left_out]]
        table = _table(listing, kept, ruled=ruled)
        if _width(console, table) <= console.width:
            console.print(table)
            if left_out:
                names = ", ".join(listing.columns[k].title for k in every if k not in kept)
                needed = _width(console, _table(listing, list(every), ruled=False))
                console.print(Text(f"not shown: {names}; COLUMNS={needed} shows all"))
            return
    _print_blocks(console, listing)


def _table(listing: Listing, kept: Sequence[int], *, ruled: bool) -> Table:
    from rich.box import HEAVY_HEAD, SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    table = Table(box=HEAVY_HEAD if ruled else SIMPLE_HEAD, show_edge=ruled, pad_edge=ruled, collapse_padding=not ruled)
    for k in kept:
        column = listing.columns[k]
        texts = [printable(text) for text in (column.title, *(row[k] for row in (*listing.rows, *listing.totals)))]
        units = [word for text in texts for word in text.split()] if column.wrap else texts
        table.add_column(
            Text(texts[0]),
            justify="right" if column.right else "left",
            no_wrap=not column.wrap,
            overflow="fold",
            min_width=max(map(cell_len, units), default=0),
        )
    for row in listing.rows:
        table.add_row(*(Text(printable(row[k])) for k in kept))
    if listing.totals:
        table.add_section()
    for row in listing.totals:
        table.add_row(*(Text(printable(row[k])) for k in kept))
    return table


def _width(console: Console, table: Table) -> int:
    """Columns that a table needs at least, in which no word is broken."""
    from rich.measure import Measurement

    return Measurement.get(console, console.options.update(max_width=UNLIMITED), table).minimum


def _print_blocks(console: Console, listing: Listing) -> None:
    from rich.table import Table
    from rich.text import Text

    for row in (*listing.rows, *listing.totals):
        heading = " ".join(text for text in row[: listing.keys] if text)
        console.print(Text(printable(heading), style="bold", overflow="fold"))
        block = Table.grid(padding=(0, 2, 0, 0))
        block.add_column(no_wrap=True)
        block.add_column(overflow="fold")
        for column, text in list(zip(listing.columns, row, strict=True))[listing.keys :]:
            if text not in ("", "-"):
                block.add_row(Text(f"  {printable(column.title)}"), Text(printable(text)))
        console.print(block)
