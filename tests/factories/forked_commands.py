"""Many `tmi` commands, each in a process of its own that is forked from one with the small packages loaded.

A forked command starts without the start of an interpreter, and without any heavy package that an earlier command
imported. So its time is that of a fresh command, except for the start, and what it imports can be seen.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HEAVY = (
    "torch", "transformers", "monai", "lightning", "sklearn", "pandas", "onnx", "onnxscript", "openvino", "radiomics",
    "SimpleITK", "captum", "matplotlib",
)  # fmt: skip
"""Packages whose import is reported."""
LIMIT_SECONDS = 120
"""Time after which a command is killed."""


@dataclass(frozen=True, kw_only=True)
class ForkedResult:
    """What a command gave."""

    code: int
    """Exit code; minus the number of the signal that killed it."""
    out: str
    """Standard output."""
    err: str
    """Standard error."""
    seconds: float
    """Processor time of the command, without the start of the interpreter."""
    heavy: tuple[str, ...]
    """The packages of `HEAVY` that it imported."""


def run_forked(
    commands: Sequence[Sequence[object]],
    *,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    limit_seconds: int = LIMIT_SECONDS,
) -> list[ForkedResult]:
    """Run commands (the words after `tmi`) one after another in `cwd`; returns their results in order.

    A command that takes longer than `limit_seconds` is killed.
    """
    rows = json.dumps([[str(word) for word in words] for words in commands])
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "result.json"
        subprocess.run(
            [sys.executable, __file__, scratch, str(limit_seconds)],
            input=rows,
            text=True,
            check=True,
            cwd=cwd,
            env={**os.environ, "COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb", **(environment or {})},
        )
        return [ForkedResult(**{**row, "heavy": tuple(row["heavy"])}) for row in json.loads(result.read_text())]


def _run_one(words: list[str], scratch: Path, limit_seconds: int) -> dict[str, object]:
    process = os.fork()
    if process == 0:
        _be_the_command(words, scratch, limit_seconds)
    _, status, usage = os.wait4(process, 0)
    heavy = scratch / "heavy"
    row = {
        "code": os.waitstatus_to_exitcode(status),
        "out": (scratch / "out").read_text(encoding="utf-8", errors="replace"),
        "err": (scratch / "err").read_text(encoding="utf-8", errors="replace"),
        "seconds": usage.ru_utime + usage.ru_stime,
        "heavy": heavy.read_text().split() if heavy.exists() else [],
    }
    heavy.unlink(missing_ok=True)
    return row


def _be_the_command(words: list[str], scratch: Path, limit_seconds: int) -> None:
    """Run `main` with both outputs in files, then end the process."""
    from tmi.toolkit.cli.main import main

    code = 1
    try:
        for descriptor, name in ((1, "out"), (2, "err")):
            file = os.open(scratch / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.alarm(limit_seconds)
        sys.argv = ["tmi", *words]
        try:
            main()
        except SystemExit as stop:
            code = 0 if stop.code is None else int(stop.code)
        sys.stdout.flush()
        sys.stderr.flush()
        (scratch / "heavy").write_text(" ".join(name for name in HEAVY if name in sys.modules))
    finally:
        os._exit(code)


def _serve(scratch: Path, limit_seconds: int) -> None:
    # Packages of the base installation and modules without torch, which every command may import.
    import nibabel  # noqa: F401
    import numpy  # noqa: F401
    import rich.console
    import rich.progress
    import rich.table  # noqa: F401
    import tokenizers  # noqa: F401
    import typer.rich_utils  # noqa: F401

    import tmi.export.bundle.request_checks
    import tmi.runtime.serving.predictor
    import tmi.toolkit.cli.main
    import tmi.training.cli.train  # noqa: F401

    rows = [_run_one(words, scratch, limit_seconds) for words in json.loads(sys.stdin.read())]
    (scratch / "result.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), int(sys.argv[2]))
