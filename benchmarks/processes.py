"""Processes that are measured from outside."""

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
    """From its start to its end."""
    document: dict[str, Any]
    """What it printed."""


def predict(cases: list[Path], bundle: Path, *options: str) -> PredictProcess:
    """Run `tmi predict` in a new process."""
    argv = [*TMI, "predict", *map(str, cases), "--bundle", str(bundle), "--json", *options]
    start = perf_counter()
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    seconds = perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"tmi predict ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return PredictProcess(seconds=seconds, document=json.loads(done.stdout))
