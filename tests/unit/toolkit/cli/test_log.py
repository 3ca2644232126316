"""`--quiet`, `--verbose` and `--log-json`: one set of options for every command."""

from __future__ import annotations

import json
import logging
import warnings

import pytest

from factories.tmi_command import tmi
from tmi.toolkit.cli.console import echo
from tmi.toolkit.cli.log import log_options, reset_log
from tmi.toolkit.cli.main import COMMANDS


@pytest.fixture
def record(tmp_path):
    """A folder of one case without images, which is rejected."""
    folder = tmp_path / "P001"
    folder.mkdir()
    (folder / "clinical.json").write_text("{}")
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_command_has_the_options(command):
    """Every command takes the three options, in the short form too."""
    text = tmi(command, "--help").out
    assert all(option in text for option in ("--quiet", "-q", "--verbose", "-v", "--log-json"))


@pytest.mark.parametrize("place", ["root", "command"])
@pytest.mark.parametrize("option", ["-q", "--quiet", "-v", "--verbose", "--log-json"])
def test_option_is_taken_before_and_after_the_command(record, option, place):
    """An option has the same effect before the command and after it; the next command starts without it."""
    arguments = (option, "check", record) if place == "root" else ("check", record, option)
    plain, outcome = tmi("check", record), tmi(*arguments)
    assert (outcome.code, outcome.out) == (plain.code, plain.out)
    if option in ("-v", "--verbose"):
        assert "largest memory of this process" in outcome.err
    if option == "--log-json":
        assert all(json.loads(line) for line in outcome.err.splitlines())
    assert tmi("check", record).err == plain.err


def test_quiet_keeps_errors_and_results(tmp_path):
    """With -q notes are gone; the error, its fix and the exit code stay."""
    plain, outcome = tmi("inspect", cwd=tmp_path), tmi("inspect", "-q", cwd=tmp_path)
    assert plain.err.startswith("bundle bundle (")
    assert (outcome.code, outcome.err.splitlines()) == (plain.code, plain.err.splitlines()[-2:])


def test_quiet_and_verbose_exclude_each_other(record):
    """Both are a usage error, whichever is given first."""
    for arguments in (("-q", "check", record, "-v"), ("check", "-v", "-q", record)):
        outcome = tmi(*arguments)
        assert outcome.code == 2
        assert "--quiet and --verbose are given" in outcome.err


@pytest.mark.parametrize("place", ["root", "command"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "nothere"), "nothere"),
        (("check", "--wrong"), "No such option: --wrong"),
        (("wrong",), "No such command"),
    ],
    ids=["bundle", "option", "command"],
)
def test_error_is_one_json_object(tmp_path, arguments, message, place):
    """An error of a command and one of click are an object with level, message and fix."""
    given = ("--log-json", *arguments) if place == "root" else (*arguments, "--log-json")
    outcome = tmi(*given, cwd=tmp_path)
    last = json.loads(outcome.err.splitlines()[-1])
    assert outcome.code != 0
    assert last["level"] == "error"
    assert message in last["message"]
    assert last["fix"]
    assert last["time"].endswith("+00:00")


def test_warning_of_a_library_is_a_json_object(capsys):
    """Warnings and records of other packages are objects as well, cleaned of escape sequences."""
    (json_option,) = (o for o in log_options() if o.name == "log_json")
    try:
        with warnings.catch_warnings():
            json_option.callback(None, json_option, True)
            warnings.simplefilter("always")
            warnings.warn("value \x1b[2J", stacklevel=1)
        logging.getLogger("pydicom").warning("tag %s", "\u202e")
        echo("a note", err=True, count=2)
    finally:
        reset_log()
    lines = capsys.readouterr().err.splitlines()
    assert all(line.isprintable() for line in lines)
    first, second, third = map(json.loads, lines)
    assert (first["logger"], second["logger"], third["logger"]) == ("py.warnings", "pydicom", "tmi")
    assert "UserWarning: value" in first["message"]
    assert (third["level"], third["message"], third["count"]) == ("info", "a note", 2)


def test_message_that_cannot_be_written_ends_nothing(monkeypatch):
    """A standard error that is full or closed does not end the command."""

    class Full:
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

        def flush(self) -> None: ...

    monkeypatch.setattr("sys.stderr", Full())
    echo("a note", err=True)
    monkeypatch.setattr("sys.stderr", None)
    echo("a note", err=True)
