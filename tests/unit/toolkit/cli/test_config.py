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
from tmi.toolkit.cli.main import COMMANDS, app
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
        ("tmi predict --engine openvino", {"openvino", "openvino-bf16", "openvino-int8"}),
        ("tmi predict cas", set()),  # a path: the script leaves it to the shell
    ],
)
def test_completion(words, expected):
    """The shell's completion offers commands, and the options and words of a command."""
    count = len(words.split(" ")) - 1
    done = run(_TMI_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(count))
    assert set(done.stdout.split()) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("tmi predict case --engine au", {"auto"}),
        ("tmi predict --precision ", {"auto", "bf16", "fp32", "int8"}),
        ("tmi verify --engine eag", {"eager", "eager-cuda"}),
        ("tmi bench --engine torchs", {"torchscript", "torchscript-cuda"}),
        ("tmi report --engine onnx-cuda-", {"onnx-cuda-fp16"}),
        ("tmi export --engine trt", {"trt", "trt-rtx"}),
        ("tmi export --precision ", {"fp16", "tf32", "fp32", "int8", "auto"}),
        ("tmi export --target sm8", {"sm80", "sm86", "sm89"}),
        ("tmi export --hardware-compatibility amp", {"ampere-plus"}),
        ("tmi build --plan-weights ", {"inside", "refit", "strip"}),
        ("tmi train --preset ", {"paper", "released", "tiny"}),
        ("tmi train --precision bf", {"bf16-mixed"}),
        ("tmi train --accelerator ", {"auto", "cpu", "gpu"}),
        ("tmi train --model rado", set()),
        ("tmi train --model svm", {"svm"}),
        ("tmi train --track ", {"tensorboard", "mlflow"}),
        ("tmi compare --table ", {"all", "clinical", "baselines", "1", "2", "3", "4"}),
        ("tmi pretrain-text --preset t", {"tiny"}),
        ("tmi pretrain-text --rendering fl", {"flags"}),
    ],
)
def test_values_are_completed(words, expected):
    """Every option with a fixed set of values offers it, through typer's completion for bash."""
    from typer._completion_classes import BashComplete
    from typer.main import get_command

    *before, incomplete = words.split(" ")[1:]
    found = BashComplete(get_command(app), {}, "tmi", "_TMI_COMPLETE").get_completions(before, incomplete)
    assert {item.value for item in found} == expected


def test_completion_script_is_printed():
    """The script of bash calls `tmi` for its words."""
    done = run("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "_TMI_COMPLETE=complete_bash" in done.stdout
    assert "complete -o default -F" in done.stdout  # without a word of ours, bash completes paths
