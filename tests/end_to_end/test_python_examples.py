"""The Python lines of README and docs: they pass strict mypy, and run with a case that is rejected."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from factories.cases import write_case
from factories.paths import ROOT

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


def python_blocks() -> dict[str, str]:
    """`PAGE:NUMBER` -> code of each block of Python."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return {
        f"{page.name}:{number}": code
        for page in pages
        for number, code in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")), start=1)
    }


BLOCKS = python_blocks()
READER = "bundle.md:1"
"""The block that reads a manifest."""


def run_mypy(folder: Path, codes: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Check programs with the project's strict settings; its cache makes a run after `make lint` short."""
    files = []
    for number, code in enumerate(codes.values()):
        files.append(folder / f"example_{number}.py")
        files[-1].write_text(code, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), *map(str, files)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_examples_pass_strict_mypy(tmp_path):
    """Every block of README and docs is typed; one that treats a rejected case as a prediction is not.

    The reader of a manifest needs no cast and no key of a dictionary, and no expression in it is `Any`.
    """
    assert {"README.md:1", "predict.md:1", "predict.md:2", READER} <= set(BLOCKS)
    assert not re.search(r"\bcast\b|\[\"", BLOCKS[READER])
    wrong = (
        "from tmi.runtime import Predictor\n\n"
        'with Predictor.open("bundle") as predictor:\n'
        '    print(predictor.predict("case")[0].probability)\n'
    )
    reader = f"# mypy: disallow-any-expr\n{BLOCKS[READER]}"
    faults = 'print(manifest.run["name"])\nmanifest.threshold = 0.9\nmanifest.files["a"] = manifest.files["b"]\n'
    codes = {**BLOCKS, "planted": wrong, "reader": reader, "planted in the reader": reader + faults}
    done = run_mypy(tmp_path, codes)
    lines = [line for line in done.stdout.splitlines() if "error:" in line]
    planted = (f"example_{len(BLOCKS)}.py", f"example_{len(BLOCKS) + 2}.py")
    assert [line for line in lines if not any(name in line for name in planted)] == [], done.stdout + done.stderr
    text = "".join(lines)
    assert 'Item "RejectedCase"' in text
    for message in (
        '"RunRecord" is not indexable',
        '"threshold" defined in "Manifest" is read-only',
        "Unsupported target for indexed assignment",
    ):
        assert message in text


@pytest.mark.parametrize("name", BLOCKS)
def test_example_runs_with_a_rejected_case(name, nano_bundle, tmp_path, monkeypatch, capsys):
    """Each block runs as it stands in a folder with `bundle`, good cases and one that is rejected."""
    (tmp_path / "bundle").symlink_to(nano_bundle)
    for case in ("case_dir", "case_a"):
        write_case(tmp_path / case, seed=1)
    (tmp_path / "case_b").mkdir()
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[name], name, "exec"), {"__name__": name})
    assert "p(" in capsys.readouterr().out or name != "README.md:1"
    if name == "README.md:1":
        (tmp_path / "case_dir" / "clinical.json").unlink()
        exec(compile(BLOCKS[name], name, "exec"), {"__name__": name})
        assert "clinical-missing" in capsys.readouterr().out
