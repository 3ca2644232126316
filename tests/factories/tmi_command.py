"""`tmi` run in this process through its entry point, with exit code and output captured."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tmi.toolkit.cli.log import reset_log
from tmi.toolkit.cli.main import main


@dataclass(frozen=True)
class CommandResult:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """Standard output parsed as one JSON document."""
        value: dict[str, Any] = json.loads(self.out)
        return value


def tmi(*arguments: object, cwd: Path | None = None) -> CommandResult:
    """Run one command; `cwd` is its working folder."""
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        patch.setattr(sys, "argv", ["tmi", *map(str, arguments)])
        if cwd is not None:
            patch.chdir(cwd)
        with pytest.raises(SystemExit) as stop:
            main()
    reset_log()  # the options of one command do not reach the next test
    code = stop.value.code
    return CommandResult(code=0 if code is None else int(code), out=out.getvalue(), err=err.getvalue())
