"""Structure of the packages: size of folders, docstrings of rooms, direction of imports."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from factories.paths import ROOT

PACKAGES = ("toolkit", "runtime", "training", "export")
LARGEST_FOLDER = 16


def folders() -> list[Path]:
    """Folders of the four packages that hold modules."""
    found = {path.parent for name in PACKAGES for path in (ROOT / name / "tmi" / name).rglob("*.py")}
    return sorted(found)


def rooms() -> list[Path]:
    """Sub-packages, those inside rooms included."""
    return [folder for folder in folders() if folder.parent.name != "tmi"]


def lint_imports(checkout: Path) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(str(checkout / name) for name in PACKAGES)
    installed = {str(ROOT / name) for name in PACKAGES}
    program = (
        # The packages have no `__init__.py` at their top: the installed ones would be a second portion of each.
        f"import sys; sys.path = [p for p in sys.path if p not in {installed}];"
        "from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    )
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache"],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the four packages and of the contracts."""
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize("folder", folders(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_folder_has_at_most_16_modules(folder):
    """A folder that grows past the limit is split into rooms."""
    modules = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= LARGEST_FOLDER, f"{folder.name}: {', '.join(sorted(modules))}"


@pytest.mark.parametrize("room", rooms(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_room_docstring_states_its_purpose(room):
    """Every sub-package has an `__init__.py` whose docstring has two sentences or more."""
    docstring = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
    assert docstring is not None
    lines = [line for line in docstring.splitlines() if line]
    assert len(lines) >= 2, docstring


PLANTED = {
    "upward import": ("toolkit/tmi/toolkit/cases/case.py", "import tmi.toolkit.cli.main", "rooms of toolkit BROKEN"),
    "upward import of runtime": (
        "runtime/tmi/runtime/engines/registry.py",
        "import tmi.runtime.serving.predictor",
        "rooms of runtime BROKEN",
    ),
    "torch in serving": ("runtime/tmi/runtime/serving/results.py", "import torch", "no torch where a serving machine"),
    "torch in a command": ("runtime/tmi/runtime/cli/predict.py", "import torch", "no torch in a command module"),
    "package above": ("runtime/tmi/runtime/cli/sign.py", "import tmi.export.cli.build", "toolkit at the bottom"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_import_breaks_its_contract(checkout, name):
    """`lint-imports` fails and names the contract and the line."""
    file, line, contract = PLANTED[name]
    path = checkout / file
    path.write_text(path.read_text(encoding="utf-8") + f"\n{line}\n", encoding="utf-8")
    done = lint_imports(checkout)
    text = " ".join(done.stdout.split())
    assert done.returncode == 1, done.stdout + done.stderr
    assert contract in text
    assert "BROKEN" in text
    assert line.removeprefix("import ") in text
