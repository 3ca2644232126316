"""Tests of `tmi config`, `tmi help`, `python -m tmi` and completion."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from dataclasses import fields

import pytest

from factories.tmi_command import tmi
from tmi.toolkit.cli.config import SCHEMA, SETTINGS
from tmi.toolkit.cli.main import COMMANDS
from tmi.toolkit.config.project import Project

OWN = 'preset = "tiny"\ntrusted_keys = ["k.pem"]\nrequire_signature = true\n'


def test_every_key_of_tmi_toml_is_described():
    """The list has each setting of a project, and no other."""
    assert set(SETTINGS) == {field.name for field in fields(Project)} - {"root", "from_file"}


@pytest.mark.parametrize("text", ["", OWN])
def test_config_prints_a_tmi_toml(text, tmp_path):
    """The output is TOML with the values in force; a project that reads it has the same settings."""
    (tmp_path / "tmi.toml").write_text(text)
    printed = tmi("config", cwd=tmp_path).out
    assert tomllib.loads(printed).items() >= tomllib.loads(text).items()
    (tmp_path / "tmi.toml").write_text(printed)
    before = {line.partition("  #")[0] for line in printed.splitlines() if not line.startswith("#")}
    again = tmi("config", cwd=tmp_path).out
    assert {line.partition("  #")[0] for line in again.splitlines() if not line.startswith("#")} == before


def test_config_names_default_and_origin(tmp_path, monkeypatch):
    """A value is the default, from tmi.toml, or from a variable, which comes first."""
    (tmp_path / "tmi.toml").write_text(OWN + 'bundle = "b"\n')
    monkeypatch.setenv("TMI_BUNDLE", "elsewhere")
    monkeypatch.setenv("TMI_KEY_PASSWORD", "swordfish")
    outcome = tmi("config", "--json", cwd=tmp_path)
    document = outcome.document
    assert document["schema"] == SCHEMA
    rows = {name: (row["value"], row["default"], row["origin"]) for name, row in document["settings"].items()}
    assert rows["preset"] == ("tiny", "paper", "from tmi.toml")
    assert rows["cohort"] == ("./cohort", "./cohort", "the default")
    assert rows["bundle"] == ("elsewhere", "./bundle", "from TMI_BUNDLE")
    assert rows["schema"] == (None, None, "the default")
    assert document["variables"]["TMI_KEY_PASSWORD"] == "set"
    text = tmi("config", cwd=tmp_path)
    assert 'preset = "tiny"  # from tmi.toml, the default is "paper"' in text.out
    assert "swordfish" not in text.out + outcome.out


def test_config_of_a_malformed_file_is_wrong_usage(tmp_path):
    (tmp_path / "tmi.toml").write_text("presets = 3\n")
    assert tmi("config", cwd=tmp_path).code == 2


def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "120", **variables}
    return subprocess.run([sys.executable, "-m", "tmi", *words], capture_output=True, text=True, env=environment)


def test_python_m_tmi_is_the_command():
    """`python -m tmi` runs the same entry point, under the name tmi."""
    done = run("predict")
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: tmi predict")


def test_help_command_equals_the_option(monkeypatch):
    """`tmi help COMMAND` prints what `tmi COMMAND --help` does, and `tmi help` what `tmi --help` does."""
    assert tmi("help", "predict").out == tmi("predict", "--help").out != ""
    assert tmi("help").out == tmi("--help").out != ""
    assert (tmi("help").code, tmi("-V").out) == (0, tmi("--version").out)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("tmi pre", {"predict", "pretrain-text"}),
        ("tmi help tra", {"train"}),
        ("tmi predict --engi", {"--engine"}),
        ("tmi ", set(COMMANDS)),
    ],
)
def test_completion(words, expected):
    """The shell's completion offers commands, and the options and words of a command."""
    count = len(words.split(" ")) - 1
    done = run(_TMI_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(count))
    assert set(done.stdout.split()) == expected


def test_completion_script_is_printed():
    """The script of bash calls `tmi` for its words."""
    done = run("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "_TMI_COMPLETE=complete_bash" in done.stdout
