"""The command line as a whole: start-up time, help texts, examples, exit codes and error messages."""

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
from typing import Any

import pytest
import typer

import tmi.toolkit.cli.main as cli
from factories.paths import ROOT
from factories.tmi_command import tmi
from tmi.toolkit.cli.main import COMMANDS
from tmi.toolkit.errors import ExitCode

HEAVY = {
    "torch", "transformers", "monai", "lightning", "pytorch_lightning", "sklearn", "scipy", "pandas", "onnx",
    "onnxruntime", "onnxscript", "openvino", "radiomics", "SimpleITK", "tokenizers",
}  # fmt: skip
"""Packages that no `--help` may import."""
PRINT_HELP = """
import contextlib, io, json, sys
from tmi.toolkit.cli.main import COMMANDS, app

texts, imported = {}, {}
for command in ("", *COMMANDS):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        app(args=[*command.split(), "--help"], prog_name="tmi", standalone_mode=False)
    texts[command] = out.getvalue()
    imported[command] = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps({"texts": texts, "imported": imported}))
"""


@pytest.fixture(scope="module")
def rendered_help() -> dict[str, Any]:
    """Help text of every command in 120 columns, and the packages imported by then; printed by one process."""
    environment = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}
    process = subprocess.run(
        [sys.executable, "-c", PRINT_HELP], capture_output=True, text=True, check=True, env=environment
    )
    document: dict[str, Any] = json.loads(process.stdout)
    return document


def function_of(command: str) -> Any:
    module, _, name = COMMANDS[command].target.partition(":")
    return getattr(importlib.import_module(module), name)


def examples_of(command: str) -> list[str]:
    _, _, part = (inspect.getdoc(function_of(command)) or "").partition("\n\nExamples:\n\n")
    return [line.strip() for line in part.splitlines() if line.strip()]


def test_help_reads_no_package_metadata(rendered_help):
    """`tmi --help` imports no importlib.metadata (with email and zipfile, a tenth of its time)."""
    assert not {"email", "zipfile"} & set(rendered_help["imported"][""])


BARE_SECONDS = 0.17
"""Processor time of a program that imports typer and rich, on the quiet machine for which the limit is stated."""


def processor_seconds(program: str) -> float:
    """Best of three, so that other load on the machine has little influence."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(seconds)


def test_help_takes_less_than_half_a_second():
    """The limit grows with the time of a bare program where the machine is slower, or a core is shared."""
    bare = processor_seconds("import typer.main, typer.rich_utils, rich.markdown")
    shown = processor_seconds("import sys; sys.argv = ['tmi', '--help']; from tmi.toolkit.cli.main import main; main()")
    assert shown < 0.5 * max(1, bare / BARE_SECONDS)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_no_heavy_package(command, rendered_help):
    """`--help` imports no framework, engine or scientific library."""
    assert set(rendered_help["imported"][command]) & HEAVY == set()


def test_help_lists_every_command_in_order(rendered_help):
    """The order is that of the command table."""
    listed = [line.split()[1] for line in rendered_help["texts"][""].splitlines() if re.match(r"[│|] [a-z-]+ ", line)]
    assert [name for name in listed if name in COMMANDS] == list(COMMANDS)


def test_help_groups_commands_by_panel(rendered_help):
    """Each command stands under the heading of its panel, and the headings are those of the table."""
    panels: dict[str, list[str]] = {}
    for line in rendered_help["texts"][""].splitlines():
        heading = re.match(r"[╭+]─* ?([A-Z][a-z]+) ─", line)
        if heading:
            panels[heading[1]] = []
        elif panels and re.match(r"[│|] [a-z-]+ ", line):
            panels[list(panels)[-1]].append(line.split()[1])
    del panels["Options"], panels["Messages"]
    expected: dict[str, list[str]] = {}
    for name, spec in COMMANDS.items():
        expected.setdefault(spec.panel, []).append(name)
    assert panels == expected
    assert list(panels) == ["Data", "Training", "Export", "Prediction", "Trust", "Setup"]


def test_help_documents_all_exit_codes(rendered_help):
    """The exit codes of the main help are those of `ExitCode`, 130 for Ctrl-C and 143 for SIGTERM."""
    text = " ".join(rendered_help["texts"][""].split())
    documented = re.search(r"Exit codes: (.*?)\. ", text)
    assert documented is not None
    numbers = [int(n) for n in re.findall(r"(?:^|; )(\d+) ", documented[1])]
    assert numbers == [int(c) for c in ExitCode] + [130, 143]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_on_lines_of_their_own(command, rendered_help):
    """Every help has examples, and each stands unwrapped on one line so that it can be copied."""
    examples = examples_of(command)
    assert examples, f"the docstring of tmi {command} has no 'Examples:' part"
    shown = [line.strip() for line in rendered_help["texts"][command].splitlines()]
    assert shown.count("Examples:") == 1
    for example in examples:
        assert example.startswith(f"tmi {command}")
        assert example in shown, "an example stands alone on one line of the rendered help"


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_are_accepted_by_the_parser(command):
    """The options and arguments of each example exist."""
    parser = cli.LazyGroup(name="tmi").get_command(None, command)
    for example in examples_of(command):
        _, name, *arguments = shlex.split(example)
        assert parser.make_context(name, arguments).params


@pytest.mark.parametrize("command", COMMANDS)
def test_every_parameter_has_a_help_text(command):
    """Each option and argument has a help text without placeholders that markdown would drop."""
    parser = cli.LazyGroup(name="tmi").get_command(None, command)
    for parameter in parser.params:
        text = getattr(parameter, "help", None) or ""
        assert text.strip(), f"{command}: {parameter.name} has no help"
        bare = re.sub(r"`[^`]*`", "", text)
        assert not re.search(r"<\w+>", bare), f"{command}: markdown drops the <placeholder> of {parameter.name}"


@pytest.mark.parametrize("command", COMMANDS)
def test_short_help_is_one_sentence(command, rendered_help):
    """The first paragraph is one sentence of fewer than 130 characters, and the rendered help shows it."""
    first = (inspect.getdoc(function_of(command)) or "").partition("\n\n")[0]
    assert first.endswith(".")
    assert len(first) < 130
    assert " ".join(first.split()) in " ".join(rendered_help["texts"][command].split())


@pytest.mark.parametrize(
    "arguments",
    [("fly",), ("synth", "--fly", "high"), ("synth",), ("synth", "out", "--cases", "many"), ("--fly",), ("check",)],
)
def test_unparsable_arguments_are_wrong_usage(arguments, tmp_path):
    """The exit code is that of wrong usage, the usage line is printed, and nothing is written."""
    outcome = tmi(*arguments, cwd=tmp_path)
    assert outcome.code == int(ExitCode.USAGE)
    assert "Usage: tmi" in outcome.err
    assert "Traceback" not in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_unknown_option_is_named(tmp_path):
    assert "--fly" in tmi("synth", "out", "--fly", cwd=tmp_path).err


def test_version_is_printed():
    outcome = tmi("--version")
    assert outcome.code == 0
    assert re.fullmatch(r"tmi \d+\.\d+\.\d+\n", outcome.out)


def break_synth(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("tmi.toolkit.synthetic.cohort.make_cohort", broken)


@pytest.mark.parametrize("where", ["none", "first", "last"])
def test_traceback_is_shown_only_with_debug(where, tmp_path, monkeypatch):
    """Without `--debug`, an unexpected error prints no traceback and no message: it may hold patient data."""
    break_synth(monkeypatch, ZeroDivisionError("patient 17"))
    arguments = {"none": [], "first": ["--debug", "synth", "c"], "last": ["synth", "c", "--debug"]}[where]
    outcome = tmi(*(arguments or ["synth", "c"]), cwd=tmp_path)
    assert outcome.code == int(ExitCode.UNEXPECTED)
    assert "error: unexpected ZeroDivisionError\n  fix: run the command again with --debug" in outcome.err
    assert ("Traceback" in outcome.err) == (where != "none")
    assert ("patient 17" in outcome.err) == (where != "none")


def test_os_error_names_reason_and_path(tmp_path, monkeypatch):
    """An error of the operating system is printed with its reason, its path and a fix."""
    break_synth(monkeypatch, PermissionError(13, "Permission denied", "/srv/cohort"))
    outcome = tmi("synth", "c", cwd=tmp_path)
    assert outcome.code == int(ExitCode.USAGE)
    assert outcome.err == "error: Permission denied at /srv/cohort\n  fix: check the path and its permissions\n"


@pytest.mark.parametrize("arguments", [["synth", "ll"], ["check", "ll"], ["import", "ll", "--ct", "ct.nii.gz"]])
def test_loop_of_links_is_named(arguments, tmp_path):
    """A symbolic link that leads to itself is wrong usage, whether it is read or written."""
    (tmp_path / "ll").symlink_to("ll")
    (tmp_path / "ct.nii.gz").touch()
    outcome = tmi(*arguments, cwd=tmp_path)
    assert outcome.code == int(ExitCode.USAGE), outcome.err
    assert "ll is a loop of symbolic links\n  fix: correct the link" in outcome.err


@pytest.mark.parametrize("command", [c for c in COMMANDS if COMMANDS[c].extra])
def test_missing_package_is_named_with_its_extra(command):
    """The error names the missing package, and the fix names the extra of the command that installs it."""
    error = cli.missing_package(ModuleNotFoundError("No module named 'x.y'", name="x.y"), [command])
    assert error is not None
    assert error.exit_code == ExitCode.UNAVAILABLE
    assert str(error) == f"tmi {command} needs the package x, which is not installed"
    assert error.fix == f"pip install 'tmi-clnet[{COMMANDS[command].extra}]'"


def test_missing_package_is_unavailable_and_own_module_unexpected(tmp_path, monkeypatch):
    """A missing dependency ends with `UNAVAILABLE`; a missing module of `tmi` is a bug and ends with `UNEXPECTED`."""
    break_synth(monkeypatch, ModuleNotFoundError("No module named 'pywt'", name="pywt"))
    outcome = tmi("synth", "c", cwd=tmp_path)
    assert outcome.code == int(ExitCode.UNAVAILABLE)
    assert "pip install 'tmi-clnet[radiomics]'" in outcome.err
    break_synth(monkeypatch, ModuleNotFoundError("No module named 'tmi.toolkit.x'", name="tmi.toolkit.x"))
    assert tmi("synth", "c", cwd=tmp_path).code == int(ExitCode.UNEXPECTED)


def test_extras_of_commands_exist():
    """Every extra that the command table names is an extra of the distribution."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(re.search(rf"^{spec.extra} = ", text, re.M) for spec in COMMANDS.values() if spec.extra)


def test_interrupt_ends_with_130(tmp_path, monkeypatch):
    break_synth(monkeypatch, KeyboardInterrupt())
    outcome = tmi("synth", "c", cwd=tmp_path)
    assert outcome.code == 130
    assert "Traceback" not in outcome.err


def test_every_command_is_a_typer_command():
    """Each target of the command table is a callable, and Typer makes a command of it."""
    for command in COMMANDS:
        assert callable(function_of(command)), command
        assert isinstance(cli.LazyGroup(name="tmi").get_command(None, command), typer.core.TyperCommand)
    assert cli.LazyGroup(name="tmi").get_command(None, "fly") is None
