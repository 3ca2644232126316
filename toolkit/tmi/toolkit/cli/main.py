"""Entry point of `tmi`: a table of commands, each given as a string and imported when it is run.

Command modules import heavy packages such as torch inside their functions, so that `tmi --help` and every
`tmi COMMAND --help` start quickly. Only command modules print or exit.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import perf_counter
from types import MappingProxyType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tmi.toolkit.cli.console import clean_messages_of_libraries, echo, open_closed_streams
from tmi.toolkit.cli.interrupts import INTERRUPTED, Interrupts, interruptible, signals_as_interrupts
from tmi.toolkit.cli.log import log_end, log_options, reset_log, write_json
from tmi.toolkit.cli.suggestions import did_you_mean
from tmi.toolkit.compute.cpu import limit_spinning
from tmi.toolkit.compute.telemetry import disable_telemetry
from tmi.toolkit.compute.user import provide_user
from tmi.toolkit.errors import ExitCode, TmiError, UnavailableError, UsageError
from tmi.toolkit.storage.outputs import ACCESS_ERRORS, SPACE_ERRORS
from tmi.toolkit.storage.terminal_text import printable


@dataclass(frozen=True)
class CommandSpec:
    """One row of the command table."""

    target: str
    """`module:function` that implements the command."""
    panel: str
    """Heading of `tmi --help` under which the command is listed."""
    extra: str | None = None
    """Extra that installs the command's optional dependencies."""


COMMANDS: Mapping[str, CommandSpec] = MappingProxyType(
    {
        "synth": CommandSpec("tmi.toolkit.cli.synth:synth", "Data", extra="radiomics"),
        "import": CommandSpec("tmi.toolkit.cli.import_:import_", "Data", extra="dicom"),
        "check": CommandSpec("tmi.toolkit.cli.check:check", "Data", extra="dicom"),
        "radiomics": CommandSpec("tmi.toolkit.cli.radiomics:radiomics", "Data", extra="radiomics"),
        "pretrain-text": CommandSpec("tmi.training.cli.pretrain_text:pretrain_text", "Training", extra="train"),
        "train": CommandSpec("tmi.training.cli.train:train", "Training", extra="train"),
        "compare": CommandSpec("tmi.training.cli.compare:compare", "Training", extra="train"),
        "export": CommandSpec("tmi.export.cli.export:export", "Export", extra="export"),
        "build": CommandSpec("tmi.export.cli.build:build", "Export", extra="trt"),
        "predict": CommandSpec("tmi.runtime.cli.predict:predict", "Prediction"),
        "collect": CommandSpec("tmi.runtime.cli.collect:collect", "Prediction"),
        "serve": CommandSpec("tmi.runtime.cli.serve:serve", "Prediction", extra="serve"),
        "triton": CommandSpec("tmi.runtime.cli.triton:triton", "Prediction", extra="serve"),
        "explain": CommandSpec("tmi.runtime.cli.explain:explain", "Prediction", extra="explain"),
        "report": CommandSpec("tmi.runtime.cli.report:report", "Prediction", extra="explain"),
        "bench": CommandSpec("tmi.runtime.cli.bench:bench", "Prediction"),
        "verify": CommandSpec("tmi.runtime.cli.verify:verify", "Trust"),
        "inspect": CommandSpec("tmi.runtime.cli.inspect:inspect", "Trust"),
        "audit": CommandSpec("tmi.training.cli.audit:audit", "Trust", extra="train"),
        "sign": CommandSpec("tmi.runtime.cli.sign:sign", "Trust", extra="sign"),
        "config": CommandSpec("tmi.toolkit.cli.config:config", "Setup"),
        "doctor": CommandSpec("tmi.runtime.cli.doctor:doctor", "Setup"),
        "help": CommandSpec("tmi.toolkit.cli.help_:help_", "Setup"),
    }
)
"""Command name -> command, in the order of the help: by panel, then in the order of the workflow."""


class LazyGroup(TyperGroup):
    """Command group that imports a command when it is requested."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.params += log_options()

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import and return a command; None if the name is unknown."""
        if cmd_name not in COMMANDS:
            return None
        module, _, function = COMMANDS[cmd_name].target.partition(":")
        single = typer.Typer(add_completion=False, rich_markup_mode="markdown")
        single.command(cmd_name, no_args_is_help=False, rich_help_panel=COMMANDS[cmd_name].panel)(
            getattr(importlib.import_module(module), function)
        )
        command = typer.main.get_command(single)
        command.params += log_options()
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command; the message about an unknown one names the closest."""
        if args and args[0] not in COMMANDS and (question := did_you_mean(args[0], COMMANDS)) is not None:
            ctx.fail(f"No such command {args[0]!r}; {question}")
        return super().resolve_command(ctx, args)

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Parse the options before the command; a message about them is cleaned."""
        with _clean_usage_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """Parse the command's arguments and run it; a message about them is cleaned."""
        with _clean_usage_errors(), interruptible("the same command starts again"):
            return super().invoke(ctx)


@contextmanager
def _clean_usage_errors() -> Iterator[None]:
    """Clean the messages that click prints itself: they quote arguments, which may be the names of any files."""
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "message"):  # click's; typer may have a copy of its own
            known = getattr(error, "possibilities", None)  # options that are close to an unknown one
            question = f"; did you mean {' or '.join(sorted(known))}?" if known else ""
            error.message = printable(str(error.message) + question)
            if hasattr(error, "possibilities"):
                error.possibilities = None
            if "--log-json" in sys.argv:  # the options may be unread
                write_json()
                raise UsageError(error.message, fix="see the command's --help") from error
        raise


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        echo(f"tmi {version('tmi-clnet')}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; allowed in any position.")] = False,
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print version.")
    ] = False,
) -> None:
    """Liver prognosis from CT, radiomics and clinical report: train, export, predict. For research use only.

    Exit codes: 0 done; 1 unexpected error; 2 wrong usage, an output that cannot be written or that another command is
    writing; 3 some input was rejected, the rest was done; 4 parity failed; 5 engine, hardware, memory or disk space not
    available; 6 bundle or run damaged, edited or not trusted; 130 stopped by Ctrl-C; 143 stopped by
    SIGTERM.
    """


def print_error(error: TmiError) -> None:
    """Print an error, its code (unless it is only that of its class) and the fix on standard error."""
    code = "" if error.code == error.class_code else f" [{error.code}]"
    case = {} if error.case_id is None else {"case_id": error.case_id}
    lines = (f"error: {error}{code}", f"  fix: {error.fix}")
    echo(*lines, err=True, level=logging.ERROR, message=str(error), fix=error.fix, code=error.code, **case)


def missing_package(error: ModuleNotFoundError, arguments: Sequence[str]) -> UnavailableError | None:
    """Return an error that names the extra to install; None if the missing module belongs to `tmi` itself."""
    package = (error.name or "").partition(".")[0]
    command = next((a for a in arguments if a in COMMANDS), None)
    if not package or package == "tmi" or command is None:
        return None
    extra = COMMANDS[command].extra
    return UnavailableError(
        f"tmi {command} needs the package {package}, which is not installed",
        fix=f"pip install 'tmi-clnet[{extra}]'" if extra else "install tmi-clnet again",
    )


def output_error(error: OSError) -> TmiError | OSError:
    """Return the error of a full disk (exit code 5), or of a path that is forbidden or a loop of links (exit code 2).

    Commands check their outputs before they work; what is raised here happened meanwhile. Another error is unexpected.
    """
    where = f" at {error.filename}" if error.filename else ""
    if error.errno in SPACE_ERRORS:
        return UnavailableError(
            f"{error.strerror}{where}", fix="free space on the disk of the output, or name a path on another one"
        )
    if error.errno in ACCESS_ERRORS:
        return UsageError(f"{error.strerror}{where}", fix="check the path and its permissions")
    if error.errno == errno.ELOOP:
        return UsageError(f"{error.filename} is a loop of symbolic links", fix="correct the link, or name another path")
    return error


def _link_loop(error: Exception) -> OSError | None:
    """The error of the system behind pathlib's RuntimeError about a loop of symbolic links; None for another error."""
    cause = error.__context__
    if isinstance(error, RuntimeError) and isinstance(cause, OSError) and cause.errno == errno.ELOOP:
        return cause
    return None


def _discard_rest_of_output() -> None:
    """Send what is still buffered for standard output nowhere, if it cannot be written: the exit code must stay."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):  # a standard output without a descriptor
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """Entry point of the `tmi` command."""
    with signals_as_interrupts() as interrupts:
        try:
            _main(interrupts)
        except KeyboardInterrupt:  # before or after the command
            echo("interrupted", err=True, level=logging.WARNING)
            sys.exit(interrupts.exit_code)
        except SystemExit as end:
            if end.code == INTERRUPTED:
                sys.exit(interrupts.exit_code)
            raise


def _main(interrupts: Interrupts) -> None:
    debug = "--debug" in sys.argv[1:]
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    start = perf_counter()
    open_closed_streams()
    reset_log()
    clean_messages_of_libraries()
    disable_telemetry()
    limit_spinning()
    provide_user()
    try:
        try:
            app(args=arguments, prog_name="tmi")
        finally:
            log_end(start)
            sys.stdout.flush()  # a full disk behind a redirection is an error of the command
    except Exception as error:  # top level: an unexpected error must not print a bare traceback
        if debug:
            echo(*traceback.format_exc().splitlines(), err=True, level=logging.ERROR)
        known = (
            missing_package(error, arguments) if isinstance(error, ModuleNotFoundError) else _link_loop(error) or error
        )
        if isinstance(known, OSError):
            _discard_rest_of_output()
            known = output_error(known)
        if isinstance(known, TmiError):
            print_error(known)
            sys.exit(int(known.exit_code))
        if interrupts.number is not None:  # a library turned the interrupt into an error of its own
            raise KeyboardInterrupt from error
        if isinstance(error, OSError) and error.strerror:
            where = f" at {error.filename}" if error.filename else ""
            what, fix = f"{error.strerror}{where}", "check the path and the disk"
        else:
            what = f"unexpected {type(error).__name__}"
            fix = "run the command again with --debug and report what it prints"
        echo(f"error: {what}", f"  fix: {fix}", err=True, level=logging.ERROR, message=what, fix=fix)
        sys.exit(int(ExitCode.UNEXPECTED))
