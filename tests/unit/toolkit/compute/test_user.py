"""A user without name and home folder, as containers have, can use every package."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from pathlib import Path

import pytest

from factories.paths import ROOT
from tmi.toolkit.compute.user import provide_user

PUBLISHED = ROOT / "tests" / "unit" / "runtime" / "bundle" / "data" / "tmi-bundle-2"
UNKNOWN = """
import os, pwd, sys
def unknown(*_):
    raise KeyError("getpwuid(): uid not found: 12345")
pwd.getpwuid = pwd.getpwnam = unknown
for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
    os.environ.pop(name, None)
"""
MAIN = "from tmi.toolkit.cli.main import main\nmain()\n"
VARIABLES = ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME")


def unknown(program: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program as a user that the system does not know."""
    return subprocess.run(
        [sys.executable, "-c", UNKNOWN + program, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.long
@pytest.mark.parametrize("package", ["tmi.runtime.engines.openvino", "tmi.runtime.engines.eager", "tmi.training.loop"])
def test_packages_are_imported_for_an_unknown_user(package):
    """OpenVINO and MONAI look up home folder and name when they are imported."""
    program = f"import importlib\nimportlib.import_module({package!r})\nimport monai, openvino, mlflow\n"
    result = unknown(program)
    assert result.returncode == 0, result.stderr


@pytest.mark.long
@pytest.mark.parametrize("engine", ["openvino", "eager"])
def test_unknown_user_predicts(engine):
    """`tmi predict` gives its prediction, and no temporary home folder stays."""
    words = ("predict", PUBLISHED / "case", "--bundle", PUBLISHED / "bundle", "--engine", engine, "--threads", 1)
    before = {p.name for p in Path(os.environ.get("TMPDIR", "/tmp")).glob("tmi-home-*")}
    result = unknown(MAIN, *words, "--json")
    assert result.returncode == 0, result.stderr
    assert {p.name for p in Path(os.environ.get("TMPDIR", "/tmp")).glob("tmi-home-*")} <= before


def test_known_user_keeps_name_and_home(monkeypatch, tmp_path):
    """Nothing is set if the variables or the system give a name and a home folder."""
    monkeypatch.setenv("LOGNAME", "anna")
    monkeypatch.setenv("HOME", str(tmp_path))
    provide_user()
    assert (getpass.getuser(), Path.home()) == ("anna", tmp_path)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
@pytest.mark.parametrize("words", [("predict", "-o"), ("inspect",), ("check",)])
def test_output_encoding_without_a_letter_loses_nothing(tmp_path, encoding, words):
    """Lines of a box or letters of a name that the encoding lacks are replaced or escaped; the command ends well."""
    case = tmp_path / "Fäll-λ"
    case.symlink_to(PUBLISHED / "case")
    bundle = ("--bundle", PUBLISHED / "bundle", "--engine", "onnx", "--threads", 1)
    arguments = {
        "predict": ("predict", case, *bundle, "-o", tmp_path / "out.json"),
        "inspect": ("inspect", PUBLISHED / "bundle"),
        "check": ("check", case, "--schema", PUBLISHED / "bundle" / "clinical_schema.json"),
    }[words[0]]
    result = subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, arguments)],
        env={**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "200"},
        capture_output=True,
    )
    assert result.returncode in (0, 3), result.stderr
    assert b"error: unexpected" not in result.stderr
    if words[0] == "predict":
        assert result.returncode == 0
        assert b"p(bad)" in result.stdout
        assert (tmp_path / "out.json").is_file()
