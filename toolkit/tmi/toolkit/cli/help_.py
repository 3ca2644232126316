"""Command `tmi help`."""

from __future__ import annotations

from typing import Annotated

import typer

from tmi.toolkit.cli.suggestions import did_you_mean
from tmi.toolkit.errors import UsageError


def _commands(incomplete: str) -> list[str]:
    from tmi.toolkit.cli.main import COMMANDS

    return [name for name in COMMANDS if name.startswith(incomplete)]


def help_(
    context: typer.Context,
    command: Annotated[
        str | None,
        typer.Argument(help="Command to explain. Default: all, as a list.", autocompletion=_commands),
    ] = None,
) -> None:
    """Show the help of a command, or the list of all commands.

    The same text is printed by `tmi COMMAND --help`, with every option and an example.

    Examples:

        tmi help
        tmi help predict
    """
    from tmi.toolkit.cli.main import COMMANDS, app

    if command is not None and command not in COMMANDS:
        raise UsageError(
            f"no such command: {command}", fix=did_you_mean(command, COMMANDS) or "`tmi help` lists all commands"
        )
    words = ["--help"] if command is None else [command, "--help"]
    typer.main.get_command(app).main(words, prog_name="tmi", standalone_mode=False)
