"""How much time and memory does `tmi explain` take at full size on a CPU?

The program writes a run of preset `paper` with random weights (one fold: ResNet-50 on 64x512x512 voxels, BERT-base with
512 tokens) and explains one real CT from the folder of test data in a new process, whose peak memory is that of the
kernel's accounting. The last line is JSON.

    python benchmarks/explain_paper_size.py [--out FOLDER] [--whole]

`--whole` adds the curves and the sanity check, which run the encoder about twenty times more. With random weights the
maps have no meaning.
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


def prepare(work: Path) -> None:
    """Write the run and the case unless they exist."""
    sys.path.insert(0, str(ROOT / "tests"))
    from factories.cases import write_case
    from factories.random_run import write_random_run
    from factories.real_case import write_real_case
    from tmi.toolkit.config.presets import paper

    if not (work / "run" / "run.json").is_file():
        write_random_run(work / "run", paper(), folds=1, vocab=DATA / "bert-base-cased-vocab" / "vocab.txt")
    if not (work / "case").is_dir():
        write_real_case(work / "case", DATA)
        shutil.copy(write_case(work / "other") / "radiomics.csv", work / "case")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--whole", action="store_true")
    options = parser.parse_args()
    work = options.out or Path(tempfile.mkdtemp())
    prepare(work)
    extra = () if options.whole else ("--quick",)
    out = work / ("whole" if options.whole else "quick")
    argv = [
        *TMI,
        "explain",
        work / "case",
        "--run",
        work / "run",
        "--mask-label",
        "5",
        "--out",
        out,
        "--force",
        *extra,
    ]
    start = time.perf_counter()
    process = subprocess.Popen(list(map(str, argv)))
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"exit code {process.returncode}")
    document = json.loads((out / "case" / "explanation.json").read_text())
    metrics = {
        "wall_s": round(time.perf_counter() - start, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gib": round(usage.ru_maxrss / 2**20, 2),
        "stages_s": document["seconds"],
        "steps": {name: c["steps"] for name, c in document["folds"][0]["completeness"].items()},
    }
    print(json.dumps(metrics))


if __name__ == "__main__":
    main()
