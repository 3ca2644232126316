"""Running `tmi` in this process as its entry point does: arguments in; exit code and both streams out."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tmi.toolkit.cli.main import main


@dataclass(frozen=True)
class CommandResult:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """Standard output as one JSON document; anything else on it fails the test."""
        value: dict[str, Any] = json.loads(self.out)
        return value


def tmi(*arguments: object, cwd: Path | None = None) -> CommandResult:
    """Run one command, in a folder where one is given."""
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
    code = stop.value.code
    return CommandResult(code=0 if code is None else int(code), out=out.getvalue(), err=err.getvalue())
