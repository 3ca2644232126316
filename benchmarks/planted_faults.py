"""Is every planted fault blocked, and no honest rebuild refused?

Plants each fault of `tests/factories/planted_faults.py` for real, runs the command that must refuse it, and prints one
row with the exit code and the reason; then exports and verifies ten honest rebuilds. Ends with 1 if one fault passes or
one rebuild is refused. The networks are cut to the bone; commands, engines and gates are the real ones. The last line
is JSON.

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

from factories.honest_rebuilds import QUICK, REBUILDS, Rebuild
from factories.nano import nano
from factories.planted_faults import Fault, Workbench, all_faults, make_workbench, reason_of
from factories.random_run import write_random_run
from factories.tmi_command import tmi

REASON = 130
"""Characters of a reason that a row shows."""


def build(folder: Path) -> Workbench:
    """Two runs, two bundles, a key pair, a case."""
    runs = [write_random_run(folder / f"run-{seed}", nano(), folds=2, seed=seed) for seed in (5, 6)]
    for run, name, engines in ((runs[0], "bundle", ("onnx", "torchscript")), (runs[1], "other", ("onnx",))):
        words = [word for engine in engines for word in ("--engine", engine)]
        exported = tmi("export", run, *words, "--out", folder / name)
        if exported.code:
            sys.exit(f"the honest bundle was refused: {exported.err}")
    (folder / "bench").mkdir()
    return make_workbench(folder / "bench", runs[0], folder / "bundle", folder / "other")


def run_fault(fault: Fault, bench: Workbench) -> bool:
    """Plant one fault and print its row."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        outcome = fault.plant(replace(bench, folder=Path(folder)), patch)
        reason = reason_of(outcome).replace(folder, "").replace(str(bench.bundle), "bundle")
        reason = re.sub(
            r".*\d+ (?:parity )?(?:gates?|checks?) failed, first |; no bundle was written", "", reason
        )
    good = fault.blocked(outcome)
    row = f"{'blocked' if good else 'PASSED'}  {outcome.code}  {fault.where:9}  {fault.name:48}"
    print(f"{row}  {textwrap.shorten(reason, REASON)}  ({time.perf_counter() - start:.1f} s)", flush=True)
    return good


def rebuild(one: Rebuild) -> bool:
    """Export and verify an honest model and print its row."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = one.change(nano())
        run = write_random_run(folder / "run", config, folds=one.folds, seed=one.seed, **one.sharing)
        engines = [word for artefact in one.artefacts for word in ("--engine", artefact)]
        exported = tmi("export", run, *engines, "--out", folder / "bundle")
        verified = tmi("verify", folder / "bundle") if exported.code == 0 else exported
    good = verified.code == 0
    said = verified.out.splitlines()[-1] if good else reason_of(verified)
    print(f"{'passed' if good else 'REFUSED'}   {verified.code}  honest     {one.name:48}  {said}", flush=True)
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="leave out what the default test run leaves out")
    quick = parser.parse_args().quick
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        os.environ["TMI_CACHE"] = str(Path(name) / "cache")
        bench = build(Path(name))
        faults = [run_fault(f, bench) for f in all_faults() if f.quick or not quick]
    honest = [rebuild(r) for r in (QUICK if quick else REBUILDS)]
    print(
        f"{sum(faults)} of {len(faults)} planted faults blocked; {sum(honest)} of {len(honest)} honest rebuilds passed"
    )
    seconds = round(time.perf_counter() - start, 1)
    print(json.dumps({"faults": len(faults), "blocked": sum(faults), "honest": len(honest), "passed": sum(honest),
                      "seconds": seconds}))  # fmt: skip
    sys.exit(0 if all(faults) and all(honest) else 1)


if __name__ == "__main__":
    main()
