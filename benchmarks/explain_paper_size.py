"""What does `tmi explain` take at full size on a CPU, in time and memory?

A run of preset `paper` with random weights (one fold: ResNet-50 over 64x512x512 voxels, BERT-base with 512 tokens) is
written and one real CT from the folder of shared test data is explained, in a process of its own whose peak memory the
kernel tells. The last line is JSON.

    python benchmarks/explain_paper_size.py [--out FOLDER] [--whole]

`--whole` adds curves and sanity check, which run the encoder some twenty times more. The answers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("TMI_TEST_DATA", ROOT.parent / "shared" / "data"))
TMI = (sys.executable, "-c", "from tmi.toolkit.cli.main import main; main()")


def prepare(place: Path) -> None:
    """Write run and case, once."""
    sys.path.insert(0, str(ROOT / "tests"))
    from factories.cases import write_case
    from factories.random_run import write_random_run
    from factories.real_case import write_real_case
    from tmi.toolkit.config.presets import paper

    if not (place / "run" / "run.json").is_file():
        write_random_run(place / "run", paper(), folds=1, vocab=DATA / "bert-base-cased-vocab" / "vocab.txt")
    if not (place / "case").is_dir():
        write_real_case(place / "case", DATA)
        shutil.copy(write_case(place / "other") / "radiomics.csv", place / "case")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--whole", action="store_true")
    options = parser.parse_args()
    place = options.out or Path(tempfile.mkdtemp())
    prepare(place)
    more = () if options.whole else ("--quick",)
    out = place / ("whole" if options.whole else "quick")
    argv = [
        *TMI,
        "explain",
        place / "case",
        "--run",
        place / "run",
        "--mask-label",
        "5",
        "--out",
        out,
        "--force",
        *more,
    ]
    start = time.perf_counter()
    process = subprocess.Popen(list(map(str, argv)))
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"exit code {process.returncode}")
    document = json.loads((out / "case" / "explanation.json").read_text())
    figures = {
        "wall_s": round(time.perf_counter() - start, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gib": round(usage.ru_maxrss / 2**20, 2),
        "stages_s": document["seconds"],
        "steps": {name: c["steps"] for name, c in document["folds"][0]["completeness"].items()},
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
