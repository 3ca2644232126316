"""Ctrl-C and SIGTERM at any moment of a command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest

from tmi.toolkit.cli import interrupts
from tmi.toolkit.cli.interrupts import Interrupts, signals_as_interrupts

NUMBERS = [signal.SIGINT, signal.SIGTERM]
# a process that a shell starts in the background ignores Ctrl-C, and its children inherit that
HANDLED = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


@pytest.fixture(autouse=True)
def default_handlers():
    """The handlers of a new process; those of the test run come back at the end."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_signal_runs_every_finally(number):
    """Both signals raise an interrupt, the exit code names the signal, and the handlers are put back."""
    with pytest.raises(KeyboardInterrupt), signals_as_interrupts() as received:
        signal.raise_signal(number)
    assert received.exit_code == 128 + number
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_ignored_signal_stays_ignored():
    """`nohup` and background jobs of a shell ignore a signal: it does not interrupt."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with signals_as_interrupts() as received:
        signal.raise_signal(signal.SIGINT)
    assert received.number is None


def test_second_signal_ends_at_once(monkeypatch):
    """A repeated signal within a second is the same event; a later one ends the process."""
    ended = []
    monkeypatch.setattr(interrupts.os, "_exit", ended.append)
    received = Interrupts()
    with pytest.raises(KeyboardInterrupt):
        received.on_signal(signal.SIGINT)
    received.on_signal(signal.SIGINT)
    assert ended == []
    monkeypatch.setattr(interrupts, "REPEAT_S", 0.0)
    received.on_signal(signal.SIGTERM)
    assert ended == [143]


def test_interrupt_in_a_callback_is_not_lost():
    """Python ignores an exception in a callback of the garbage collector: the interrupt is raised again."""

    class Target:
        pass

    targets = [Target()]
    callback = weakref.ref(targets[0], lambda _: signal.raise_signal(signal.SIGINT))
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), signals_as_interrupts() as received:
        _forget(targets)
    assert callback() is None
    assert received.exit_code == 130
    assert time.monotonic() - start < 4


def _forget(targets: list[object]) -> None:
    """Start the callbacks, then work until the interrupt comes."""
    targets.clear()
    for _ in range(100):
        time.sleep(0.05)


PROGRAM = """
import os, sys, time
from pathlib import Path
from tmi.toolkit.cli import main as cli, synth
from tmi.toolkit.storage.atomic_files import staged_folder
def command():
    with staged_folder(Path("cohort")) as stage:
        (stage / "half").write_text("half")
        Path("started").touch()
        time.sleep(30)
synth.synth = command
sys.argv = ["tmi", "synth"]
cli.main()
"""


@pytest.mark.parametrize("number", NUMBERS)
def test_interrupted_command_leaves_nothing(tmp_path, number):
    """One line without a traceback, the documented exit code, and neither a lock nor a staged folder remains."""
    process = subprocess.Popen(
        [sys.executable, "-c", HANDLED + PROGRAM], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "started").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, err) == (128 + number, "interrupted; the same command starts again\n")
    assert [p.name for p in tmp_path.iterdir()] == ["started"]


def test_interrupt_while_the_command_line_is_imported(tmp_path):
    """Ctrl-C in the first moment prints one line: the entry point imports nothing of the package by itself."""
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    program = "from tmi.__main__ import main; main()"
    outcome = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert (outcome.returncode, outcome.stderr) == (130, "interrupted\n")


def test_installed_command_is_that_entry_point():
    """The script of the distribution calls the function that the test above calls."""
    root = Path(__file__).parents[4]
    assert 'tmi = "tmi.__main__:main"' in (root / "pyproject.toml").read_text(encoding="utf-8")
