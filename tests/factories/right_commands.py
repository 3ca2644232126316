"""Right commands of a first hour, each with its exit code, the first line of its output and its time limit.

They are run one after another in the folder that `factories.first_hour.write_first_hour` makes, on one small bundle.
"""

from __future__ import annotations

import shlex
from typing import NamedTuple

from factories.nano import NANO_OPTIONS


class Right(NamedTuple):
    """A command, and what it gives."""

    words: str
    """Words after `tmi`."""
    code: int
    """Exit code: 0, or 3 if a part of the input is rejected."""
    first_line: str
    """Beginning of the first line of standard output."""
    seconds: float
    """Limit of the processor time, without the start of the interpreter."""


RIGHT = (
    Right("", 2, "Usage: tmi [OPTIONS] COMMAND [ARGS]...", 1.0),
    Right("-h", 0, "Usage: tmi [OPTIONS] COMMAND [ARGS]...", 1.0),
    Right("--help", 0, "Usage: tmi [OPTIONS] COMMAND [ARGS]...", 1.0),
    Right("help", 0, "Usage: tmi [OPTIONS] COMMAND [ARGS]...", 1.0),
    Right("help predict", 0, "Usage: tmi predict [OPTIONS] {cases}...", 1.0),
    Right("predict --help", 0, "Usage: tmi predict [OPTIONS] {cases}...", 1.0),
    Right("train -h", 0, "Usage: tmi train [OPTIONS] [cohort]", 1.0),
    Right("--version", 0, "tmi ", 1.0),
    Right("-V", 0, "tmi ", 1.0),
    Right("config", 0, "# tmi.toml: none in this folder", 1.0),
    Right("config --json", 0, "{", 1.0),
    Right("doctor", 0, "tmi ", 1.0),
    Right("doctor --json", 0, "{", 1.0),
    Right("doctor --bundle bundle", 0, "tmi ", 1.0),
    Right("check held-out", 0, "warning: case P1: liver.nii.gz covers 493 mL [liver-volume]", 1.0),
    Right("check cohort", 0, "warning: case C000: liver.nii.gz covers 493 mL [liver-volume]", 1.0),
    Right("check cohort --json", 0, "{", 1.0),
    Right("check cohort --records-only", 0, "8 case(s): 8 good, 0 with warnings, 0 rejected", 1.0),
    Right("check held-out/P1 cohort/C000", 3, "warning: case P1: liver.nii.gz covers 493 mL [liver-volume]", 1.0),
    Right("check held-out/P1 -q", 0, "warning: case P1: liver.nii.gz covers 493 mL [liver-volume]", 1.0),
    Right(
        "check held-out/P1 held-out/P2 --mask-label 1",
        0,
        "warning: case P1: liver.nii.gz covers 493 mL [liver-volume]",
        1.0,
    ),
    Right("import i1 --ct held-out/P1/ct.nii.gz", 0, "case i1: written to i1", 1.0),
    Right(
        "import i2 --ct held-out/P1/ct.nii.gz --mask held-out/P1/liver.nii.gz --clinical held-out/P1/clinical.json",
        0,
        "case i2: written to i2",
        1.0,
    ),
    Right("import i3 --ct held-out/P2/ct.nii.gz --json", 0, "{", 1.0),
    Right("import i1 --ct held-out/P2/ct.nii.gz --force", 0, "case i1: written to i1", 1.0),
    Right("import t1 --table t.csv --map m.yaml", 3, "refused: row 2 (case K1): albumin is implausible", 1.0),
    Right("import t2 --table t.csv --map m.yaml --json", 3, "{", 1.0),
    Right("predict case", 0, "attention: case: 762 of 1781 radiomic features", 3.0),
    Right("predict case --bundle bundle", 0, "attention: case: 762 of 1781 radiomic features", 3.0),
    Right("predict case --engine onnx", 0, "attention: case: 762 of 1781 radiomic features", 3.0),
    Right("predict case --engine onnx --json", 0, "{", 3.0),
    Right("predict case --engine onnx -o p.json", 0, "attention: case: 762 of 1781 radiomic features", 3.0),
    Right("predict case --engine onnx -o p.json --force", 0, "attention: case: 762 of 1781 radiomic features", 3.0),
    Right("predict case --engine onnx -o p.csv", 0, "attention: case: 762 of 1781 radiomic features", 3.0),
    Right("predict case --engine onnx -o p.jsonl", 0, "attention: case: 762 of 1781 radiomic features", 3.0),
    Right("predict case --engine onnx -o P.CSV", 0, "attention: case: 762 of 1781 radiomic features", 3.0),
    Right("predict case --engine onnx -o p", 0, "attention: case: 762 of 1781 radiomic features", 3.0),
    Right("predict case --engine onnx --batch 2", 0, "attention: case: 762 of 1781 radiomic features", 3.0),
    Right("predict case --engine onnx --threads 1", 0, "attention: case: 762 of 1781 radiomic features", 3.0),
    Right("predict case --engine onnx --threads 99", 0, "attention: case: 762 of 1781 radiomic features", 3.0),
    Right("predict case --engine onnx --timing", 0, "attention: case: 762 of 1781 radiomic features", 3.0),
    Right("predict case --engine onnx --no-verify", 0, "attention: case: 762 of 1781 radiomic features", 3.0),
    Right("predict case --engine onnx --cache", 0, "attention: case: 762 of 1781 radiomic features", 3.0),
    Right("predict case --engine onnx --reuse", 0, "attention: case: 762 of 1781 radiomic features", 3.0),
    Right("predict case --engine onnx --precision fp32", 0, "attention: case: 762 of 1781 radiomic features", 3.0),
    Right("predict case --engine onnx --mask-label 1", 0, "attention: case: 762 of 1781 radiomic features", 3.0),
    Right("predict case --engine onnx -q", 0, "attention: case: 762 of 1781 radiomic features", 3.0),
    Right("predict case --engine onnx -v", 0, "attention: case: 762 of 1781 radiomic features", 3.0),
    Right("predict case --engine onnx --log-json", 0, "attention: case: 762 of 1781 radiomic features", 3.0),
    Right("predict case nowhere --engine onnx", 3, "attention: case: 762 of 1781 radiomic features", 3.0),
    Right("predict case/ --engine onnx", 0, "attention: case: 762 of 1781 radiomic features", 3.0),
    Right("predict ./case --engine onnx --debug", 0, "attention: case: 762 of 1781 radiomic features", 1.0),
    Right("inspect", 0, "bundle ", 1.0),
    Right("inspect bundle", 0, "bundle ", 1.0),
    Right("inspect bundle --json", 0, "{", 1.0),
    Right("verify --engine onnx", 0, "bundle bundle: 14 files as exported, manifest 2da8f0b3a9a928fc, not signed", 3.0),
    Right(
        "verify bundle --engine onnx --threads 1",
        0,
        "bundle bundle: 14 files as exported, manifest 2da8f0b3a9a928fc, not signed",
        3.0,
    ),
    Right("verify bundle --engine onnx --json", 0, "{", 3.0),
    Right(
        "train cohort --model svm --plan",
        0,
        "svm has no network: it needs only the memory of its feature table",
        1.0,
    ),
)
"""Commands that need no torch."""
TINY = shlex.join(("--preset", "tiny", *NANO_OPTIONS))
"""The smallest network."""
HELD_OUT = "Held-out cases, positive = bad prognosis"
SLOW: tuple[Right, ...] = (
    Right("bench bundle case --engine onnx --repeat 1", 0, "From the files of a case to its prediction", 30.0),
    Right("synth made --cases 4", 0, "synthetic cohort made: 4 cases of 4 patients", 30.0),
    Right("radiomics held-out/P1 --force", 0, "1 case(s): 1 written, 0 up to date, 0 rejected", 60.0),
    Right("train cohort --preset tiny --plan", 0, "541,397 parameters trained, 0 frozen", 30.0),
    Right(f"train cohort --out runs/new --folds 2 --epochs 1 {TINY}", 0, HELD_OUT, 60.0),
    Right(f"train cohort --out runs/new --folds 2 --epochs 1 --resume {TINY}", 0, "run runs/new is already", 60.0),
    Right("train cohort --model rf --out runs/rf --folds 2 --preset tiny", 0, HELD_OUT, 60.0),
    Right("audit runs/new cohort", 0, "holds       files: no file was changed after training", 60.0),
    Right("export runs/first --engine onnx --out b1", 0, "bundle b1: 2 folds", 90.0),
    Right("export runs/first --engine torchscript --out b2", 0, "bundle b2: 2 folds", 90.0),
    Right("predict case --bundle b2 --engine torchscript --json", 0, "{", 30.0),
    Right("explain case --run runs/first --quick --out maps", 0, "attention: case: 40 of 42 fields", 60.0),
    Right("report case --bundle b1 --quick --out pages", 0, "", 60.0),
    Right(f"pretrain-text --out reading --steps 5 --batch 8 {TINY}", 0, "R2 of each field", 60.0),
    Right(
        f"compare cohort --table 1 --model rf --model tmi-clnet --out compared --folds 2 --epochs 1 {TINY}",
        0,
        "On these 8 cases TMI-CLNet has rank 1 of 2",
        120.0,
    ),
)
"""Commands that train, export, explain or extract."""
