"""Runs `tmi predict` in a new process and measures its wall time."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

TMI = (sys.executable, "-c", "from tmi.toolkit.cli.main import main; main()")


@dataclass(frozen=True)
class PredictProcess:
    """One process of `tmi predict --json`."""

    seconds: float
    """Wall time from start to end."""
    document: dict[str, Any]
    """Its JSON output."""


def predict(cases: list[Path], bundle: Path, *options: str) -> PredictProcess:
    """Run `tmi predict` in a new process."""
    argv = [*TMI, "predict", *map(str, cases), "--bundle", str(bundle), "--json", *options]
    start = perf_counter()
    process = subprocess.run(argv, capture_output=True, text=True, check=False)
    seconds = perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"tmi predict ended with {process.returncode}: {process.stderr.strip()[-500:]}")
    return PredictProcess(seconds=seconds, document=json.loads(process.stdout))
