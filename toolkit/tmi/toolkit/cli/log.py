"""Log of a command on standard error: notes, warnings, errors and progress, as text or as one JSON object a line.

Every text of a command that is no result is a record of the logger `tmi`. The options `--quiet`, `--verbose` and
`--log-json` set its level and its format; `log_options` adds them to `tmi` and to every command. A record holds no
patient data beyond the id of a case.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys
from functools import cache
from time import perf_counter
from typing import Annotated, Any

import typer

from tmi.toolkit.errors import UsageError
from tmi.toolkit.storage.terminal_text import printable, printable_json

LOGGER = "tmi"
PANEL = "Messages"
"""Heading of the options in the help."""


class _StderrHandler(logging.StreamHandler[Any]):
    """Writes to the standard error of the moment: a progress bar replaces it while it is shown."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        """The current standard error."""
        return sys.stderr

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop a record that cannot be written: a command does not end because nobody reads its messages."""
        if not isinstance(sys.exc_info()[1], OSError | ValueError | AttributeError):
            super().handleError(record)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(record.getMessage(), lines=True)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        fields = getattr(record, "fields", {})
        message = fields.get("message", record.getMessage().strip())
        document = {"time": time, "level": record.levelname.lower(), "logger": record.name} | fields
        return printable_json(json.dumps(document | {"message": message}, ensure_ascii=False, allow_nan=False))


@cache
def _handler() -> logging.Handler:
    handler = _StderrHandler()
    handler.setFormatter(_TextFormatter())
    logger = logging.getLogger(LOGGER)
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)
    return handler


def log(level: int, *lines: str, **fields: Any) -> None:
    """Log lines of text as one record.

    Args:
        level: level of the `logging` module.
        lines: the lines; a line break inside one of them is escaped.
        fields: further keys of the JSON object; `message` replaces the lines there. Numbers must be finite.
    """
    _handler()
    logging.getLogger(LOGGER).log(level, "%s", "\n".join(map(printable, lines)), extra={"fields": fields})


def shows_progress() -> bool:
    """Whether notes and progress are shown: not with `--quiet`."""
    _handler()
    return logging.getLogger(LOGGER).isEnabledFor(logging.INFO)


def is_verbose() -> bool:
    """Whether every step is shown (`--verbose`)."""
    _handler()
    return logging.getLogger(LOGGER).isEnabledFor(logging.DEBUG)


def writes_json() -> bool:
    """Whether records are JSON objects (`--log-json`); no bar is drawn then, on a terminal either."""
    return isinstance(_handler().formatter, _JsonFormatter)


def write_json() -> None:
    """Write every record as a JSON object from now on, those of libraries and their warnings too."""
    handler = _handler()
    handler.setFormatter(_JsonFormatter())
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(True)


def reset_log() -> None:
    """Return to the defaults: notes and progress as text."""
    handler = _handler()
    handler.setFormatter(_TextFormatter())
    logging.getLogger().removeHandler(handler)
    logging.captureWarnings(False)
    logging.getLogger(LOGGER).setLevel(logging.INFO)


def log_end(start: float) -> None:
    """Log the time since `start`, a value of `perf_counter`, and the largest memory; shown with `--verbose` only."""
    import resource

    seconds = perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    log(
        logging.DEBUG,
        f"ended after {seconds:.1f} s; largest memory of this process {peak / 2**20:.0f} MiB",
        event="end",
        seconds=round(seconds, 3),
        peak_bytes=peak,
    )


def _set_quiet(value: bool) -> None:
    if value:
        _set_level(logging.WARNING)


def _set_verbose(value: bool) -> None:
    if value:
        _set_level(logging.DEBUG)


def _set_level(level: int) -> None:
    logger = logging.getLogger(LOGGER)
    _handler()
    if logger.level not in (logging.INFO, level):
        raise UsageError("--quiet and --verbose are given", fix="give one of the two")
    logger.setLevel(level)


def _set_json(value: bool) -> None:
    if value:
        write_json()


def _declare(
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            "-q",
            help="No notes and no progress; warnings, errors and results stay.",
            callback=_set_quiet,
            is_eager=True,
            expose_value=False,
            rich_help_panel=PANEL,
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            help="Every step, time and memory of the command.",
            callback=_set_verbose,
            is_eager=True,
            expose_value=False,
            rich_help_panel=PANEL,
        ),
    ] = False,
    log_json: Annotated[
        bool,
        typer.Option(
            "--log-json",
            help="Messages and progress on standard error as one JSON object a line.",
            callback=_set_json,
            is_eager=True,
            expose_value=False,
            rich_help_panel=PANEL,
        ),
    ] = False,
) -> None:
    """Carry the declarations of the options."""


@cache
def log_options() -> list[Any]:
    """Options `--quiet`, `--verbose` and `--log-json`, to be added to the parameters of a command or group."""
    declared = typer.Typer(add_completion=False)
    declared.command(add_help_option=False)(_declare)
    return [p for p in typer.main.get_command(declared).params if p.name in ("quiet", "verbose", "log_json")]
