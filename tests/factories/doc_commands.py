"""Which commands of the pages are run by a test, with what, and for which reason the others are not."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from factories.nano import NANO_OPTIONS
from factories.pages import SHELL, Block, blocks, command_lines, shell_lines


class Reason(NamedTuple):
    """Why a command is not run on a machine without a GPU, a network and a second machine."""

    text: str
    holds: Callable[[list[str]], bool]
    """Whether the words of a command have this reason; a line that no longer has it must be run."""


GPU = Reason("builds a plan on the GPU that runs it", lambda words: words[0] == "build")
NODES = Reason("needs a second machine", lambda words: "--nodes" in words)
DEVICES = Reason("needs several devices, and the cases for them", lambda words: "--devices" in words)
DOWNLOAD = Reason(
    "needs weights of hundreds of megabytes from their authors",
    lambda words: {"r3d50_K_200ep.pth", "biobert-v1.1/"} & set(words) != set(),
)
SERVES = Reason("runs until a signal; tests/end_to_end/test_serve.py runs it", lambda words: words[0] == "serve")
SENDS = Reason(
    "needs a running service; tests/end_to_end/test_predict_server.py runs it", lambda words: "--server" in words
)
SYNOPSIS = Reason("names the options, with placeholders", lambda words: any(w.startswith("[--") for w in words))
REASONS = (GPU, NODES, DEVICES, DOWNLOAD, SERVES, SENDS, SYNOPSIS)

RUN_PROGRAMS = ("tmi", "openssl")
"""Programs whose lines are run."""
OTHER_PROGRAMS: Mapping[str, str] = {
    "make": "its targets run the tests; the lines of `make demo` are those of README's session",
    "pip": "tests/end_to_end/test_install.py installs each extra",
    "curl": "tests/unit/runtime/service/test_service.py sends such forms",
    "gh": "needs a published release",
}
"""Programs whose lines are not run -> why."""

SMALL = ("--preset", "tiny", *NANO_OPTIONS)
SHORT = ("--folds", "2", "--epochs", "1", *SMALL)
SHRUNK: Mapping[str, tuple[str, ...]] = {
    "train": SHORT,
    "compare": (
        *(*SHORT, "--parallel-folds", "1", "--set", "system.radiomics_model.trees=5"),
        *("--set", "system.resnet2d.planes=[4,4,4,4]"),
    ),
    "pretrain-text": (*SMALL, "--steps", "5", "--batch", "8"),
    "synth": ("--cases", "20"),
    "bench": ("--repeat", "1", "--cases", "1", "--ct", "64x64x32"),
    "explain": ("--quick",),
    "report": ("--quick",),
}
"""Words added to a command of a page, so that it takes seconds; the last value of an option counts."""

NEEDS: Mapping[str, tuple[str, ...]] = {
    "README.md": ("dicom", "seg.dcm", "record.json", "patients.xlsx", "mapping.yaml"),
    "benchmarks/README.md": ("BUNDLE",),
    "docs/audit.md": ("cohort",),
    "docs/bundle.md": ("bundle", "CASE"),
    "docs/clinical.md": ("cohort", "pbc.json"),
    "docs/command-line.md": ("cohort", "held-out", "bundle"),
    "docs/compare.md": ("cohort",),
    "docs/explain.md": ("cohort", "case_a", "runs/first", "runs/ct-only", "bundle"),
    "docs/import-table.md": ("cohort.xlsx", "mapping.yaml"),
    "docs/import.md": (
        *("dicom", "liver.dcm", "P001.json", "ct.nii.gz", "total.nii.gz", "cohort.xlsx", "mapping.yaml"),
        *("data", "pacs", "tilted"),
    ),
    "docs/predict.md": ("case_a", "case_b", "bundle"),
    "docs/radiomics.md": ("untabled", "labels/P001", "external", "features.csv", "names.yaml"),
    "docs/results/README.md": ("pbc.csv", "docs"),
    "docs/scale.md": ("cohort", "bundle"),
    "docs/serve.md": ("bundle",),
    "docs/synthetic.md": (),
    "docs/systems.md": ("cohort",),
    "docs/tensorrt.md": ("RUN", "CASE"),
    "docs/training.md": ("cohort", "pbc.json"),
    "docs/trust.md": ("case_a", "bundle"),
}
"""Page -> what its folder has before the first command; the names are keys of `factories.doc_folder.MAKERS`."""
BEFORE: Mapping[str, tuple[str, ...]] = {"docs/audit.md": ("train cohort/ --out runs/first",)}
"""Page -> commands of another page on which it relies."""
CODES: Mapping[str, int] = {
    **{f"import cases/{case} ": 3 for case in "BCDEFG"},
    "predict heldout ": 2,
    "export RUN --engine trt ": 5,  # without a GPU
}
"""Beginning of the words of a command -> its exit code, where it is not 0."""


class DocCommand(NamedTuple):
    """A command of a page."""

    line: int
    """Line of the page at which its block opens."""
    program: str
    """`tmi`, or one of the other programs that are run."""
    words: tuple[str, ...]
    """Words after the program."""

    @property
    def text(self) -> str:
        """The words, as they are typed."""
        return shlex.join(self.words)

    @property
    def reason(self) -> Reason | None:
        """Why it is not run; None: it is run."""
        return next((r for r in REASONS if self.program == "tmi" and r.holds(list(self.words))), None)

    @property
    def code(self) -> int:
        """Exit code that is expected."""
        return next((code for start, code in CODES.items() if self.text.startswith(start)), 0)

    def shrunk(self) -> tuple[str, ...]:
        """The words with those that make it short."""
        return (*self.words, *SHRUNK.get(self.words[0], ()))


def page_commands(page: Path) -> list[DocCommand]:
    """Commands of the programs that are run, in the order of the page."""
    found = []
    for block in blocks(page, *SHELL):
        for line in shell_lines(block):
            found += [DocCommand(block.line, "tmi", tuple(w)) for w in command_lines(Block("", line, 0)) if w]
            if line.startswith("openssl "):
                found.append(DocCommand(block.line, "openssl", tuple(shlex.split(line, comments=True)[1:])))
    return found


def programs(page: Path) -> set[str]:
    """First words of the lines of blocks in a shell's language."""
    lines = [line for block in blocks(page, "sh", "bash", "shell", "console") for line in shell_lines(block)]
    commands = [re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line).partition("#")[0].split() for line in lines]
    return {words[0] for words in commands if words}
