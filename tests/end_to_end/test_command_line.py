"""Guards of the whole project: how quick and how helpful the command line is, and how the packages are laid out."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

import tmi.toolkit.cli.main as cli
from factories.paths import ROOT
from factories.tmi_command import tmi
from tmi.toolkit.cli.main import COMMANDS
from tmi.toolkit.errors import ExitCode

PACKAGES = ("toolkit", "training", "export", "runtime")
HEAVY = {
    "torch", "transformers", "monai", "lightning", "pytorch_lightning", "sklearn", "scipy", "pandas", "onnx",
    "onnxruntime", "onnxscript", "openvino", "radiomics", "SimpleITK", "tokenizers",
}  # fmt: skip
"""What no help may wait for."""
MAX_LINES = 420
ASK_FOR_HELP = """
import contextlib, io, json, sys
from tmi.toolkit.cli.main import COMMANDS, app

texts, after = {}, {}
for command in ("", *COMMANDS):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        app(args=[*command.split(), "--help"], prog_name="tmi", standalone_mode=False)
    texts[command] = out.getvalue()
    after[command] = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps({"texts": texts, "after": after}))
"""


def modules() -> list[Path]:
    return [p for folder in (*PACKAGES, "tests", "benchmarks") for p in sorted((ROOT / folder).rglob("*.py"))]


@pytest.fixture(scope="module")
def asked() -> dict[str, Any]:
    """Every help text as a terminal of 120 columns shows it, and what was imported by then; one process."""
    environment = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, "-c", ASK_FOR_HELP], capture_output=True, text=True, check=True, env=environment
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def function_of(command: str) -> Any:
    module, _, name = COMMANDS[command].target.partition(":")
    return getattr(importlib.import_module(module), name)


def examples_of(command: str) -> list[str]:
    _, _, part = (inspect.getdoc(function_of(command)) or "").partition("\n\nExamples:\n\n")
    return [line.strip() for line in part.splitlines() if line.strip()]


def test_help_takes_less_than_half_a_second():
    """Processor time of the quickest of three, which other work on the machine does not lengthen."""
    seconds = []
    for _ in range(3):
        program = "import sys; sys.argv = ['tmi', '--help']; from tmi.toolkit.cli.main import main; main()"
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.5


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_no_help_imports_anything_heavy(command, asked):
    assert set(asked["after"][command]) & HEAVY == set()


def test_help_lists_every_command_in_order(asked):
    """The order is that of the command table."""
    listed = [line.split()[1] for line in asked["texts"][""].splitlines() if re.match(r"[│|] [a-z-]+ ", line)]
    assert [name for name in listed if name in COMMANDS] == list(COMMANDS)


def test_help_groups_commands_by_panel(asked):
    """Each command stands under the heading of its panel, and the headings are those of the table."""
    panels: dict[str, list[str]] = {}
    for line in asked["texts"][""].splitlines():
        heading = re.match(r"[╭+]─* ?([A-Z][a-z]+) ─", line)
        if heading:
            panels[heading[1]] = []
        elif panels and re.match(r"[│|] [a-z-]+ ", line):
            panels[list(panels)[-1]].append(line.split()[1])
    del panels["Options"]
    expected: dict[str, list[str]] = {}
    for name, spec in COMMANDS.items():
        expected.setdefault(spec.panel, []).append(name)
    assert panels == expected
    assert list(panels) == ["Data", "Training", "Export", "Prediction", "Trust"]


def test_the_documented_exit_codes_are_those_of_the_table(asked):
    text = " ".join(asked["texts"][""].split())
    documented = re.search(r"Exit codes: (.*?)\. ", text)
    assert documented is not None
    numbers = [int(n) for n in re.findall(r"(?:^|; )(\d+) ", documented[1])]
    assert numbers == [int(c) for c in ExitCode] + [130]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_ends_its_description_with_examples_that_can_be_copied(command, asked):
    examples = examples_of(command)
    assert examples, f"the docstring of tmi {command} has no 'Examples:' part"
    shown = [line.strip() for line in asked["texts"][command].splitlines()]
    assert shown.count("Examples:") == 1
    for example in examples:
        assert example.startswith(f"tmi {command}")
        assert example in shown, "an example stands alone on one line of the rendered help"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_is_accepted_by_the_parser(command):
    parser = cli.LazyGroup(name="tmi").get_command(None, command)
    for example in examples_of(command):
        _, name, *arguments = shlex.split(example)
        assert parser.make_context(name, arguments).params


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_and_argument_says_what_it_is(command):
    parser = cli.LazyGroup(name="tmi").get_command(None, command)
    for parameter in parser.params:
        text = getattr(parameter, "help", None) or ""
        assert text.strip(), f"{command}: {parameter.name} has no help"
        bare = re.sub(r"`[^`]*`", "", text)
        assert not re.search(r"<\w+>", bare), f"{command}: markdown drops the <placeholder> of {parameter.name}"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_short_help_is_one_whole_sentence(command, asked):
    first = (inspect.getdoc(function_of(command)) or "").partition("\n\n")[0]
    assert first.endswith(".")
    assert len(first) < 130
    assert " ".join(first.split()) in " ".join(asked["texts"][command].split())


@pytest.mark.parametrize(
    "arguments",
    [("fly",), ("synth", "--fly", "high"), ("synth",), ("synth", "out", "--cases", "many"), ("--fly",), ("check",)],
)
def test_what_cannot_be_parsed_is_wrong_usage(arguments, tmp_path):
    outcome = tmi(*arguments, cwd=tmp_path)
    assert outcome.code == int(ExitCode.USAGE)
    assert "Usage: tmi" in outcome.err
    assert "Traceback" not in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_option_is_named(tmp_path):
    assert "--fly" in tmi("synth", "out", "--fly", cwd=tmp_path).err


def test_the_version_is_told():
    outcome = tmi("--version")
    assert outcome.code == 0
    assert re.fullmatch(r"tmi \d+\.\d+\.\d+\n", outcome.out)


def break_synth(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("tmi.toolkit.synthetic.cohort.make_cohort", broken)


@pytest.mark.parametrize("where", ["none", "first", "last"])
def test_an_unexpected_error_shows_its_traceback_only_with_debug(where, tmp_path, monkeypatch):
    break_synth(monkeypatch, ZeroDivisionError("patient 17"))
    arguments = {"none": [], "first": ["--debug", "synth", "c"], "last": ["synth", "c", "--debug"]}[where]
    outcome = tmi(*(arguments or ["synth", "c"]), cwd=tmp_path)
    assert outcome.code == int(ExitCode.UNEXPECTED)
    assert "error: unexpected ZeroDivisionError\n  fix: run the command again with --debug" in outcome.err
    assert ("Traceback" in outcome.err) == (where != "none")
    assert ("patient 17" in outcome.err) == (where != "none")


def test_an_error_of_the_system_names_what_and_where(tmp_path, monkeypatch):
    break_synth(monkeypatch, PermissionError(13, "Permission denied", "/srv/cohort"))
    outcome = tmi("synth", "c", cwd=tmp_path)
    assert outcome.code == int(ExitCode.UNEXPECTED)
    assert outcome.err == (
        "error: Permission denied at /srv/cohort\n  fix: check the path, its permissions and the free space\n"
    )


@pytest.mark.parametrize("command", [c for c in COMMANDS if COMMANDS[c].extra])
def test_a_missing_package_is_named_with_the_extra_that_installs_it(command):
    error = cli.missing_package(ModuleNotFoundError("No module named 'x.y'", name="x.y"), [command])
    assert error is not None
    assert error.exit_code == ExitCode.UNAVAILABLE
    assert str(error) == f"tmi {command} needs the package x, which is not installed"
    assert error.fix == f"pip install 'tmi-clnet[{COMMANDS[command].extra}]'"


def test_a_missing_package_ends_with_unavailable_and_a_missing_module_of_ours_with_unexpected(tmp_path, monkeypatch):
    break_synth(monkeypatch, ModuleNotFoundError("No module named 'pywt'", name="pywt"))
    outcome = tmi("synth", "c", cwd=tmp_path)
    assert outcome.code == int(ExitCode.UNAVAILABLE)
    assert "pip install 'tmi-clnet[radiomics]'" in outcome.err
    break_synth(monkeypatch, ModuleNotFoundError("No module named 'tmi.toolkit.x'", name="tmi.toolkit.x"))
    assert tmi("synth", "c", cwd=tmp_path).code == int(ExitCode.UNEXPECTED)


def test_the_extras_that_errors_name_are_those_of_the_distribution():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(re.search(rf"^{spec.extra} = ", text, re.M) for spec in COMMANDS.values() if spec.extra)


def test_ctrl_c_ends_with_130(tmp_path, monkeypatch):
    break_synth(monkeypatch, KeyboardInterrupt())
    outcome = tmi("synth", "c", cwd=tmp_path)
    assert outcome.code == 130
    assert "Traceback" not in outcome.err


def test_every_command_is_a_function_that_typer_can_call():
    for command in COMMANDS:
        assert callable(function_of(command)), command
        assert isinstance(cli.LazyGroup(name="tmi").get_command(None, command), typer.core.TyperCommand)
    assert cli.LazyGroup(name="tmi").get_command(None, "fly") is None


@pytest.mark.parametrize("package", PACKAGES)
def test_each_root_holds_exactly_its_own_package(package):
    inside = {p.name for p in (ROOT / package / "tmi").iterdir() if p.name != "__pycache__"}
    assert inside == {package}
    assert (ROOT / package / "tmi" / package / "py.typed").is_file()


def test_no_namespace_folder_is_closed_by_an_init_file():
    """Several roots share `tmi`; an `__init__.py` there would hide all but one of them."""
    assert [p for package in PACKAGES for p in (ROOT / package).rglob("__init__.py") if p.parent.name == "tmi"] == []


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_module_is_longer_than_a_reader_can_hold(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_no_file_is_named_for_nothing():
    nameless = {"utils", "util", "helpers", "common", "base", "manager", "misc"}
    assert [p.relative_to(ROOT).as_posix() for p in modules() if p.stem in nameless] == []
