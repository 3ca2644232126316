"""Running `tmi` in this process as its entry point does: arguments in; exit code and both streams out."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tmi.toolkit.cli import main


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """Standard output as one JSON document; anything else on it fails the test."""
        value: dict[str, Any] = json.loads(self.out)
        return value


class TmiCommand:
    """Calls `tmi.toolkit.cli.main` with arguments, in a folder."""

    def __init__(self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capfd, self._monkeypatch = capfd, monkeypatch

    def __call__(self, *arguments: str | Path, cwd: Path | None = None) -> Outcome:
        """Run one command; native libraries' output counts, since the streams are captured by descriptor."""
        self._capfd.readouterr()
        with self._monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["tmi", *map(str, arguments)])
            if cwd is not None:
                patch.chdir(cwd)
            with pytest.raises(SystemExit) as stop:
                main()
        code = stop.value.code
        streams = self._capfd.readouterr()
        return Outcome(code=0 if code is None else int(code), out=streams.out, err=streams.err)
