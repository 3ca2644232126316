"""How much time and memory does the full-size preset take on a CPU to export and predict, and do the engines agree?

The program writes a run of preset `paper` with random weights (by default two folds that share no encoder: each has a
ResNet-50 on 64x512x512 voxels and a BERT-base), exports it to ONNX with every parity check, and predicts one real case:
an abdominal CT, its liver mask and a row of a trial's table, from the folder of test data. Each step is a new process,
so that its peak memory can be measured. The last line is JSON.

    python benchmarks/paper_size.py [--out FOLDER] [--folds 2] [--shared] [--keep]

The weights are random, and CT and record belong to different people: the predictions have no meaning.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("TMI_TEST_DATA", ROOT.parent / "shared" / "data"))
ENGINES = ("openvino-bf16", "openvino", "onnx", "eager")
TMI = (sys.executable, "-c", "from tmi.toolkit.cli.main import main; main()")


@dataclass
class Step:
    name: str
    command: str
    seconds: float
    peak_gib: float
    output: str


def run(name: str, argv: tuple[str, ...] | list[str], *, shown: str) -> Step:
    """Run a process; its peak resident memory is that of the kernel's accounting."""
    print(f"$ {shown}", flush=True)
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(argv, stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        output = out.read()
    seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"{shown}: exit code {process.returncode}\n{output}")
    step = Step(name, shown, seconds, usage.ru_maxrss / 2**20, output)
    print(f"  {seconds:.1f} s, peak {step.peak_gib:.1f} GiB", flush=True)
    return step


def tmi(name: str, *arguments: object) -> Step:
    words = [str(a) for a in arguments]
    return run(name, [*TMI, *words], shown=" ".join(["tmi", *words]))


def write_run(folder: Path, folds: int, shared: bool) -> None:
    """Write the run and the case; the only step that is not a `tmi` command."""
    sys.path.insert(0, str(ROOT / "tests"))
    from factories.random_run import write_random_run
    from factories.real_case import write_real_case
    from tmi.toolkit.config.presets import paper

    vocab = DATA / "bert-base-cased-vocab" / "vocab.txt"
    write_random_run(folder / "run", paper(), folds=folds, vocab=vocab, shared_text=shared, shared_ct=shared)
    write_real_case(folder / "real-case", DATA)


def folder_gib(folder: Path) -> float:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 2**30


def compare_with_eager(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Largest difference of each engine's probabilities from eager's, over the ensemble and all folds."""

    def probabilities(result: dict[str, Any]) -> list[float]:
        rows = [result["probability"], *(f["probability"] for f in result["folds"])]
        return [row[name] for row in rows for name in sorted(row)]

    eager = probabilities(results["eager"])
    return {
        name: max(abs(a - b) for a, b in zip(probabilities(result), eager, strict=True))
        for name, result in results.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder to work in; default: a temporary one")
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--shared", action="store_true", help="give all folds the same two encoders")
    parser.add_argument("--keep", action="store_true", help="do not remove run, case and bundle")
    parser.add_argument("--write-run", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write_run:
        write_run(options.out, options.folds, options.shared)
        return
    if not DATA.is_dir():
        sys.exit(f"real test data not found at {DATA}; set TMI_TEST_DATA to its folder")
    work = options.out or Path(tempfile.mkdtemp(prefix="paper-size-"))
    work.mkdir(parents=True, exist_ok=True)
    try:
        measure(work, options.folds, options.shared)
    finally:
        if not options.keep:
            for name in ("run", "real-case", "bundle"):
                shutil.rmtree(work / name, ignore_errors=True)
        else:
            print(f"files are in {work}", file=sys.stderr)


def measure(work: Path, folds: int, shared: bool) -> None:
    flags = ["--out", str(work), "--folds", str(folds), *(["--shared"] if shared else []), "--write-run"]
    steps = [run("write run", [sys.executable, __file__, *flags], shown="(write a run with random weights)")]
    bundle = work / "bundle"
    steps.append(tmi("export", "export", work / "run", "--engine", "onnx", "--out", bundle))
    print(steps[-1].output, end="")
    results: dict[str, dict[str, Any]] = {}
    for engine in ENGINES:
        words = ("--bundle", bundle, "--engine", engine, "--mask-label", 5, "--json")
        steps.append(tmi(f"predict {engine}", "predict", work / "real-case", *words))
        (results[engine],) = json.loads(steps[-1].output)["results"]
    errors = compare_with_eager(results)
    stages = {name: {k: round(v, 2) for k, v in r["seconds"].items()} for name, r in results.items()}
    print(f"\n{'step':18} {'seconds':>8} {'peak GiB':>9}")
    for step in steps:
        print(f"{step.name:18} {step.seconds:8.1f} {step.peak_gib:9.1f}")
    print(f"\n{'engine':18} {'ct s':>8} {'text s':>8} {'fusion s':>9} {'p(bad)':>9} {'|p - eager|':>12}")
    for name, result in results.items():
        ct, text, fusion = (stages[name][stage] for stage in ("ct", "text", "fusion"))
        print(f"{name:18} {ct:8.2f} {text:8.2f} {fusion:9.2f} {result['probability']['bad']:9.6f} {errors[name]:12.1e}")
    print(
        json.dumps(
            {
                "benchmark": "paper_size",
                "folds": folds,
                "shared_encoders": shared,
                "cores": os.cpu_count(),
                "machine": platform.machine(),
                "bundle_gib": round(folder_gib(bundle), 2),
                "steps": {s.name: {"seconds": round(s.seconds, 1), "peak_gib": round(s.peak_gib, 2)} for s in steps},
                "stages": stages,
                "probability_bad": {name: r["probability"]["bad"] for name, r in results.items()},
                "max_abs_error_to_eager": errors,
            }
        )
    )


if __name__ == "__main__":
    main()
