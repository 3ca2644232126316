"""Is every planted fault blocked, and is every valid model accepted?

The program plants each fault of `tests/factories/planted_faults.py`, runs the command that must fail, and prints a row
with its exit code and reason; a fault of privacy may end with 0 if no output holds the planted text. Then it exports
and verifies ten valid models. It ends with 1 if a fault passes or a valid model is rejected. The networks are the
smallest ones; commands, engines and parity checks are unchanged. The last line is JSON.

    python benchmarks/planted_faults.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import textwrap
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from factories.nano import nano
from factories.planted_faults import Fault, Workbench, all_faults, make_workbench, reason_of
from factories.random_run import write_random_run
from factories.tmi_command import tmi
from factories.valid_models import QUICK, VALID_MODELS, ValidModel

REASON = 130
"""Largest number of characters of a reason in a row."""


def build(folder: Path) -> Workbench:
    """Build the workbench: two runs, two bundles, a key pair and a case."""
    runs = [write_random_run(folder / f"run-{seed}", nano(), folds=2, seed=seed) for seed in (5, 6)]
    for run, name, engines in ((runs[0], "bundle", ("onnx", "torchscript")), (runs[1], "other", ("onnx",))):
        words = [word for engine in engines for word in ("--engine", engine)]
        exported = tmi("export", run, *words, "--out", folder / name)
        if exported.code:
            sys.exit(f"the valid bundle was rejected: {exported.err}")
    (folder / "bench").mkdir()
    return make_workbench(folder / "bench", runs[0], folder / "bundle", folder / "other")


def run_fault(fault: Fault, bench: Workbench) -> bool:
    """Plant one fault and print its row."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        outcome = fault.plant(replace(bench, folder=Path(folder)), patch)
        reason = reason_of(outcome).replace(folder, "").replace(str(bench.bundle), "bundle")
        reason = re.sub(r".*\d+ (?:parity )?(?:gates?|checks?) failed, first |; no bundle was written", "", reason)
    blocked = fault.blocked(outcome)
    if blocked and outcome.code == 0:
        reason = "no output holds the planted text"
    row = f"{'blocked' if blocked else 'PASSED'}  {outcome.code}  {fault.where:9}  {fault.name:48}"
    print(f"{row}  {textwrap.shorten(reason, REASON)}  ({time.perf_counter() - start:.1f} s)", flush=True)
    return blocked


def run_valid_model(model: ValidModel) -> bool:
    """Export and verify a valid model and print its row."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = model.change(nano())
        run = write_random_run(folder / "run", config, folds=model.folds, seed=model.seed, **model.sharing)
        engines = [word for artefact in model.artefacts for word in ("--engine", artefact)]
        exported = tmi("export", run, *engines, "--out", folder / "bundle")
        verified = tmi("verify", folder / "bundle") if exported.code == 0 else exported
    accepted = verified.code == 0
    message = verified.out.splitlines()[-1] if accepted else reason_of(verified)
    print(f"{'passed' if accepted else 'REJECTED'}  {verified.code}  valid      {model.name:48}  {message}", flush=True)
    return accepted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="only the faults and models of the default test run")
    quick = parser.parse_args().quick
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        os.environ["TMI_CACHE"] = str(Path(name) / "cache")
        bench = build(Path(name))
        faults = [run_fault(f, bench) for f in all_faults() if f.quick or not quick]
    accepted = [run_valid_model(m) for m in (QUICK if quick else VALID_MODELS)]
    print(
        f"{sum(faults)} of {len(faults)} planted faults blocked; {sum(accepted)} of {len(accepted)} valid models passed"
    )
    seconds = round(time.perf_counter() - start, 1)
    print(json.dumps({"faults": len(faults), "blocked": sum(faults), "honest": len(accepted), "passed": sum(accepted),
                      "seconds": seconds}))  # fmt: skip
    sys.exit(0 if all(faults) and all(accepted) else 1)


if __name__ == "__main__":
    main()
