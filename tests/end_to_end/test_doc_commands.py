"""The fenced commands of the pages: each is run, in the order of its page, or has a reason that still holds."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from factories.doc_commands import (
    BEFORE,
    CODES,
    NEEDS,
    OTHER_PROGRAMS,
    REASONS,
    RUN_PROGRAMS,
    SHRUNK,
    DocCommand,
    page_commands,
    programs,
)
from factories.doc_folder import MAKERS, REAL, DocFiles, write_doc_folder
from factories.forked_commands import run_forked
from factories.pages import PAGES, page_name
from factories.paths import ROOT

COMMANDS = {page_name(page): page_commands(page) for page in PAGES}
LIMIT_SECONDS = 1800
"""Time of one command."""


def test_every_command_is_run_or_has_a_reason():
    """A page with a command that runs has a folder in `NEEDS`, and no page is listed without one."""
    run = {name for name, commands in COMMANDS.items() if any(c.reason is None for c in commands)}
    assert run == set(NEEDS)
    assert sum(len(commands) for commands in COMMANDS.values()) > 60


def test_reasons_are_few_and_used():
    """Each reason stands for a command of a page, and most commands are run."""
    commands = [c for page in COMMANDS.values() for c in page]
    assert {c.reason for c in commands} - {None} == set(REASONS)
    assert sum(c.reason is None for c in commands) > 0.9 * len(commands) - 1


def test_tables_name_what_the_pages_have():
    """What is needed before a page can be made, and each expected exit code belongs to a command."""
    assert {name for names in NEEDS.values() for name in names} == set(MAKERS)
    assert set(BEFORE) <= set(NEEDS)
    assert {s for s in CODES for page in COMMANDS.values() for c in page if c.text.startswith(s)} == set(CODES)
    assert set(SHRUNK) <= {c.words[0] for page in COMMANDS.values() for c in page}


def test_other_programs_have_a_reason():
    """A line of a shell block that is no command of `tmi` is run too, or its program is listed with a reason."""
    used = set().union(*(programs(page) for page in PAGES))
    assert used <= {*RUN_PROGRAMS, *OTHER_PROGRAMS}
    assert set(OTHER_PROGRAMS) <= used


def test_a_new_command_is_found(tmp_path):
    """A line that is added to a page, behind a prompt, a variable or a continued line, is a command to run."""
    page = tmp_path / "page.md"
    page.write_text(
        "```sh\ntmi check x/ # why\nTMI_KEY=k tmi predict \\\n  CASE -q > log\n```\n\n```\n$ tmi build B\n```\n"
    )
    found = page_commands(page)
    assert [c.text for c in found] == ["check x/", "predict CASE -q", "build B"]
    assert [c.reason for c in found][:2] == [None, None]
    assert found[2].reason in REASONS


def newest_run(folder: Path) -> str:
    return max((folder / "runs").iterdir(), key=lambda run: run.stat().st_mtime).name


def run_block(commands: list[DocCommand], folder: Path) -> list[str]:
    """Run the commands of a block in their order; returns what went wrong."""
    problems = []
    for command in (c for c in commands if c.program == "openssl"):
        done = subprocess.run([command.program, *command.words], cwd=folder, capture_output=True, text=True)
        problems += [f"openssl {command.text}: {done.stderr}"] if done.returncode else []
    tmi = [c for c in commands if c.program == "tmi"]
    words = [[w.replace("RUN", newest_run(folder)) if w.startswith("runs/RUN") else w for w in c.shrunk()] for c in tmi]
    for command, result in zip(
        tmi, run_forked(words, cwd=folder, limit_seconds=LIMIT_SECONDS) if words else [], strict=True
    ):
        print(f"{result.seconds:7.1f} s  exit code {result.code}  tmi {command.text}")
        if result.code != command.code or "Traceback" in result.err:
            problems.append(f"tmi {command.text}: exit code {result.code}\n{result.err}")
            print(result.err)
    return problems


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NEEDS)
def test_page_runs_in_order(name, tmp_path, nano_run, nano_bundle, request):
    """The commands of a page, one after another in one folder, with fewer cases and epochs and small networks."""
    # The fixture skips the test where real images and tables are missing; most pages need none.
    shared_data = request.getfixturevalue("shared_data") if set(NEEDS[name]) & set(REAL) else None
    folder = write_doc_folder(tmp_path, NEEDS[name], DocFiles(nano_run, nano_bundle, shared_data))
    before = [DocCommand(0, "tmi", tuple(text.split())) for text in BEFORE.get(name, ())]
    commands = [c for c in [*before, *page_commands(ROOT / name)] if c.reason is None]
    lines = dict.fromkeys(c.line for c in commands)
    assert [problem for line in lines for problem in run_block([c for c in commands if c.line == line], folder)] == []
