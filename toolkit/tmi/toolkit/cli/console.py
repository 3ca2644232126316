"""Everything that commands print: lines, JSON documents and rich consoles, cleaned by `printable`.

No other module calls `typer.echo`, `print` or `rich.console.Console`, or writes to `sys.stdout` (a test enforces it).
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any

import typer

from tmi.toolkit.cli.log import log
from tmi.toolkit.storage.terminal_text import printable, printable_json

if TYPE_CHECKING:
    from rich.console import Console

PIPED_WIDTH = 140
"""Columns of tables in a file or a pipe."""
DUMB = ("dumb", "unknown")
"""Values of `TERM` for a terminal without control sequences, as in rich."""


def echo(*lines: str, err: bool = False, level: int = logging.INFO, **fields: Any) -> None:
    """Print lines. A line break inside one of them is escaped, so that no name can forge a line of its own.

    Args:
        lines: the lines.
        err: log them on standard error instead of printing them on standard output.
        level: level of the record; `--quiet` hides those below a warning.
        fields: further keys of the record with `--log-json`; `message` replaces the lines there.
    """
    if err:
        log(level, *lines, **fields)
    else:
        typer.echo("\n".join(map(printable, lines)))


def echo_json(text: str) -> None:
    """Print a JSON document on standard output."""
    typer.echo(printable_json(text.removesuffix("\n")))


def make_console(*, stderr: bool = False, **options: Any) -> Console:
    """A rich console that cleans every text that it renders; its own control sequences and styles stay.

    Its width is `COLUMNS` if that is set, else the width of the terminal, else `PIPED_WIDTH`. `NO_COLOR` and
    `TERM=dumb` are honoured by rich.
    """
    dumb = os.environ.get("TERM", "").lower() in DUMB
    options.setdefault("width", _width(options.get("file") or (sys.stderr if stderr else sys.stdout), fixed=dumb))
    if dumb:
        options.setdefault("height", 25)  # without a height rich takes 80 columns
    console: Console = _console_class()(stderr=stderr, **options)
    return console


def _width(stream: Any, *, fixed: bool) -> int | None:
    """Width of a stream; None for a terminal, whose width rich follows, if it is not `fixed`."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) > 0:
        return int(columns)
    try:
        width = os.get_terminal_size(stream.fileno()).columns or 80  # a pseudo-terminal may report 0
    except (AttributeError, ValueError, OSError):  # no terminal
        return PIPED_WIDTH
    return width if fixed else None


@cache
def _console_class() -> Any:
    from rich.console import Console  # imported when a command needs it: rich would delay `tmi --help`

    class PrintableConsole(Console):
        def render_str(self, text: str, **kwargs: Any) -> Any:  # before a cell is measured
            return super().render_str(printable(text, lines=True), **kwargs)

        def render(self, renderable: Any, options: Any = None) -> Any:
            for segment in super().render(renderable, options):
                yield segment if segment.control else segment._replace(text=printable(segment.text, lines=True))

    return PrintableConsole


def open_closed_streams() -> None:
    """Replace closed standard streams by the null device.

    Otherwise the next file that is opened takes their descriptor, and what a library prints is written into it.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "r" if name == "stdin" else "w", encoding="utf-8", closefd=False))


def clean_messages_of_libraries() -> None:
    """Clean what other packages print: warnings, and log records without a handler (DICOM readers quote the file).

    A character that the encoding of an output lacks is escaped as well, instead of ending the command.
    """
    format_warning = warnings.formatwarning
    if not getattr(format_warning, "is_printable", False):

        def formatwarning(*args: Any, **kwargs: Any) -> str:
            return printable(format_warning(*args, **kwargs), lines=True)

        formatwarning.is_printable = True  # type: ignore[attr-defined]
        warnings.formatwarning = formatwarning
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_PrintableFormatter())
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), lines=True)
