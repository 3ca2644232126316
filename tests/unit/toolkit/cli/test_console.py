"""Everything that commands print is cleaned, and nothing is printed elsewhere."""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import re
import subprocess
import sys
import warnings

import pytest

from factories.cases import write_case
from factories.paths import ROOT
from factories.tmi_command import tmi
from tmi.toolkit.cli.console import clean_messages_of_libraries, echo, echo_json, make_console
from tmi.toolkit.cli.main import print_error
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.storage.terminal_text import is_unicode, printable

NAMES = ("\x1b]0;owned\x07", "a\nerror: forged", "\u202e1950_emaN", "\x9b2J", "caf\udce9")
PRINTING = re.compile(r"typer\.(echo|secho)|(?<![\w.])print\(|(?<![\w.])Console\(|std(out|err)\.write")


def clean(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


def code_lines(text: str) -> list[str]:
    """Lines after a module's docstring, which may hold an example that prints."""
    tree = ast.parse(text)
    end = tree.body[0].end_lineno if tree.body and ast.get_docstring(tree) is not None else 0
    return text.splitlines()[end:]


def test_only_the_console_module_prints():
    """No other module prints: every text goes through the function that cleans it."""
    sources = [p for room in ("toolkit", "runtime", "training", "export") for p in (ROOT / room).rglob("*.py")]
    assert len(sources) > 250
    found = {
        p.relative_to(ROOT).as_posix()
        for p in sources
        if any(PRINTING.search(line) for line in code_lines(p.read_text(encoding="utf-8")))
    }
    # the entry point has one constant line for an interrupt before the console is imported
    assert found == {"toolkit/tmi/toolkit/cli/console.py", "toolkit/tmi/__main__.py"}


@pytest.mark.parametrize("name", NAMES)
def test_name_of_a_folder_is_cleaned(tmp_path, name):
    """`tmi check` prints the name of a case folder with escapes; the JSON document holds a name of UTF-8 itself."""
    folder = tmp_path / name
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system does not take the name")
    (folder / "clinical.json").write_text("{}")
    for path in (folder, tmp_path):  # given by its name, and found in a folder of cases
        outcome = tmi("check", path)
        assert outcome.code == 3, outcome.err
        assert clean(outcome.out)
        assert clean(outcome.err)
        assert "\nerror: forged" not in outcome.out
    outcome = tmi("check", folder, "--json")
    assert clean(outcome.out)
    assert outcome.document["findings"][0]["case_id"] == (name if is_unicode(name) else printable(name))


@pytest.mark.parametrize(
    "arguments",
    [("check", "\x1b[2J"), ("\x1b[2J",), ("check", "x", "--\x1b[2J"), ("synth", "x", "--cases", "9", "\x1b[2J")],
    ids=["case", "command", "option", "surplus"],
)
def test_quoted_argument_is_cleaned(arguments):
    """An error that quotes an argument, click's own included, prints no escape sequence."""
    outcome = tmi(*arguments)
    assert outcome.code in (2, 3)
    assert "[2J" in outcome.out + outcome.err
    assert clean(outcome.out)
    assert clean(outcome.err)


def test_error_text_is_one_line(capsys):
    """An error from a file's strings prints one line and its fix."""
    print_error(InputRejectedError("modality 'C\x07\nerror: T'", fix="see\x1b[0m", code="c", case_id="P\u202e1"))
    assert capsys.readouterr().err == ("error: case P\\u202e1: modality 'C\\x07\\nerror: T' [c]\n  fix: see\\x1b[0m\n")


def test_lines_and_documents_are_cleaned(capsys):
    """Lines stay apart, and a document parses to its value."""
    echo("a\nb", "c\x1b")
    assert capsys.readouterr().out == "a\\nb\nc\\x1b\n"
    echo_json(json.dumps({"a": "\u202e\x9b"}, ensure_ascii=False))
    out = capsys.readouterr().out
    assert (clean(out), json.loads(out)) == (True, {"a": "\u202e\x9b"})


def test_rich_tables_are_cleaned_and_keep_their_style():
    """A console cleans the text of tables and statuses, and still writes its own colours."""
    from rich.table import Table

    stream = io.StringIO()
    console = make_console(file=stream, force_terminal=True, color_system="standard", highlight=False, width=80)
    table = Table("case")
    table.add_row("[red]P1\x1b]0;owned\x07\u202e[/red]")
    console.print(table)
    console.print("left out: \x1b[2J", markup=False)
    text = stream.getvalue()
    assert "\x1b[31m" in text
    assert not re.search("\x07|\u202e|\x1b\\]|\x1b\\[2J", text)
    assert r"P1\x1b]0;owned\x07\u202e" in text
    assert r"left out: \x1b[2J" in text


def test_messages_of_libraries_are_cleaned(capsys, monkeypatch):
    """Warnings and log records of other packages, which quote DICOM strings, print no escape sequence."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    clean_messages_of_libraries()
    assert clean(warnings.formatwarning("value \x1b[2J\u202e", UserWarning, "f.py", 1, line=""))
    assert logging.lastResort is not None
    record = logging.LogRecord("pydicom", logging.WARNING, "f.py", 1, "value %r %s", ("a", "\x1b[2J"), None)
    assert logging.lastResort.format(record) == r"value 'a' \x1b[2J"


def test_output_without_a_letter_of_a_name_keeps_the_rest(tmp_path):
    """A character that the output's encoding lacks is escaped; the findings are not lost."""
    import subprocess
    import sys

    case = write_case(tmp_path / "M\u00fcller_\u809d", seed=1)
    (case / "clinical.json").write_text("{}")
    result = subprocess.run(
        [sys.executable, "-c", "from tmi.toolkit.cli.main import main; main()", "check", case],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        encoding="latin-1",
        check=False,
    )
    assert result.returncode == 3, result.stderr
    assert "case M\xfcller_\\u809d: " in result.stdout


def test_closed_streams_become_the_null_device(tmp_path):
    """With closed standard streams a command does its work, and no file takes their descriptors."""
    words = [sys.executable, "-c", f"{CLOSED}; from tmi.toolkit.cli.main import main; main()", "--version"]
    assert subprocess.run(words, check=False).returncode == 0
    code = f"{CLOSED}; open_closed_streams(); s = open({str(tmp_path / 'x')!r}, 'w'); sys.exit(s.fileno() < 3)"
    words[2] = "from tmi.toolkit.cli.console import open_closed_streams; " + code
    assert subprocess.run(words, check=False).returncode == 0


CLOSED = "import os, sys; [os.close(n) for n in range(3)]; sys.stdin = sys.stdout = sys.stderr = None"
