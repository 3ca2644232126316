"""The layout of source folders: namespace packages, type markers, the length of modules and the names of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from factories.paths import ROOT

PACKAGES = ("toolkit", "training", "export", "runtime")
MAX_LINES = 420
VAGUE_NAMES = {"utils", "util", "helpers", "common", "base", "manager", "misc"}


def modules() -> list[Path]:
    return [p for folder in (*PACKAGES, "tests", "benchmarks") for p in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("package", PACKAGES)
def test_source_root_holds_only_its_own_package(package):
    """`training/tmi` holds `training` and nothing else, and the package is typed; the toolkit holds `python -m tmi`."""
    names = {p.name for p in (ROOT / package / "tmi").iterdir() if p.name != "__pycache__"}
    assert names == {package} | ({"__main__.py"} if package == "toolkit" else set())
    assert (ROOT / package / "tmi" / package / "py.typed").is_file()


def test_namespace_folders_have_no_init_file():
    """Several source roots share the namespace `tmi`; an `__init__.py` there would hide all but one of them."""
    assert [p for package in PACKAGES for p in (ROOT / package).rglob("__init__.py") if p.parent.name == "tmi"] == []


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_module_has_at_most_420_lines(path):
    """A module that grows past the limit is split by subject."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_no_module_has_a_vague_name():
    """A module is named for its subject."""
    assert [p.relative_to(ROOT).as_posix() for p in modules() if p.stem in VAGUE_NAMES] == []
