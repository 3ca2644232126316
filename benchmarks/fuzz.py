"""Does every reader end in a value or in a typed error, whatever the bytes of its file?

The program damages the valid file of each reader with a structure-aware mutator (`tests/factories/fuzzing`), reads it
in a watched process, and prints a line for each mutant that ends in a traceback, a crash, more than 10 s or more than
4 GB. It ends with 1 if there is one. The same numbers give the same mutants.

    python benchmarks/fuzz.py [--mutants 20000] [--first 0] [--target NAME] [--jobs N]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from factories.fuzzing.runner import fuzz
from factories.fuzzing.targets import TARGETS


def main() -> int:
    """Run the mutants, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=20_000, help="number of mutants of all readers together")
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant of each reader")
    parser.add_argument("--target", choices=sorted(TARGETS), help="one reader; default: all")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="number of processes")
    parser.add_argument("--patience", type=float, default=1.0, help="factor on the longest time, for a busy machine")
    options = parser.parse_args()
    names = [options.target] if options.target else list(TARGETS)
    start = time.perf_counter()
    outcome = fuzz(names, mutants=options.mutants, first=options.first, jobs=options.jobs, patience=options.patience,
                   progress=lambda name: print(f"  {name}", file=sys.stderr, flush=True))  # fmt: skip
    for finding in outcome.findings:
        print(finding)
    counts, seconds = outcome.counts, time.perf_counter() - start
    print(
        f"{options.mutants} mutants of {len(names)} readers in {seconds:.0f} s: {counts['rejected']} rejected, "
        f"{counts['accepted']} accepted, {len(outcome.findings)} findings; the slowest took {outcome.slowest[0]:.1f} s "
        f"({outcome.slowest[1]})"
    )
    return 1 if outcome.findings else 0


if __name__ == "__main__":
    sys.exit(main())
