"""Progress on standard error: bars on a terminal, lines at intervals in a file, nothing with --quiet."""

from __future__ import annotations

import io
import json
import logging
import math

import pytest

from tmi.toolkit.cli import progress as module
from tmi.toolkit.cli.log import LOGGER, reset_log, write_json
from tmi.toolkit.cli.progress import duration, interval, show_progress, show_steps


class Terminal(io.StringIO):
    """A standard error that is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    """The clock of the lines."""
    clock = Clock()
    monkeypatch.setattr(module._Lines.__init__, "__defaults__", (clock,))
    return clock


@pytest.fixture
def errors(monkeypatch):
    """Function that makes standard error a terminal or a file and returns it."""

    def make(*, terminal: bool, **environment: str) -> io.StringIO:
        for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in ({"TERM": "xterm"} | environment).items():
            monkeypatch.setenv(name, value)
        stream = Terminal() if terminal else io.StringIO()
        monkeypatch.setattr("sys.stderr", stream)
        return stream

    yield make
    reset_log()


def count(clock: Clock, steps: int, seconds: float, **options: bool) -> None:
    """Show a task whose steps take so many seconds each."""
    with show_progress() as progress:
        task = progress.add("checking", steps, unit="cases", **options)
        for _ in range(steps):
            clock.now += seconds
            task.advance()


def test_file_gets_lines_with_the_time_left(errors, clock):
    """A file gets a line when the interval has passed, and one at the end."""
    stream = errors(terminal=False)
    count(clock, 10, 4)
    assert stream.getvalue().splitlines() == [
        "checking: 3 of 10 cases; about 28 s left",
        "checking: 6 of 10 cases; about 16 s left",
        "checking: 9 of 10 cases; about 4 s left",
        "checking: 10 of 10 cases",
    ]


def test_short_task_gets_no_line(errors, clock):
    """A task shorter than the interval has no line, unless it is announced."""
    stream = errors(terminal=False)
    count(clock, 5, 1)
    assert stream.getvalue() == ""
    count(clock, 5, 1, announce=True)
    assert stream.getvalue().splitlines() == ["checking: 1 of 5 cases; about 4 s left", "checking: 5 of 5 cases"]


def test_day_of_work_gets_a_line_a_minute(errors, clock):
    """The interval grows with the time, to a minute at most."""
    stream = errors(terminal=False)
    count(clock, 24 * 360, 10)
    assert 1400 < len(stream.getvalue().splitlines()) < 1600
    assert [interval(t) for t in (0, 600, 3600, 1e6)] == [10, 12, 60, 60]


def test_silent_step_is_reported(errors, clock):
    """After a minute without a line, a line states what is being done."""
    stream = errors(terminal=False)
    lines = module._Lines()
    lines.step("fold 0: map")
    for clock.now in (30, 60, 90, 121):
        lines.write_waiting()
    assert stream.getvalue().splitlines() == [
        "working for 1 min; last: fold 0: map",
        "working for 2 min; last: fold 0: map",
    ]


def test_waiting_thread_ends_with_the_block(errors, monkeypatch):
    """The thread writes while the block works, and is gone after it."""
    import threading

    stream = errors(terminal=False)
    monkeypatch.setattr(module, "WAITING", 0.01)
    monkeypatch.setattr(module, "WATCH", 0.01)
    monkeypatch.setattr(module, "SHORTEST", 0.01)
    with show_steps("exporting"):
        for _ in range(200):
            if "working for" in stream.getvalue():
                break
            threading.Event().wait(0.01)
    assert "working for 0 s; last: exporting" in stream.getvalue()
    assert "progress" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize(
    ("terminal", "environment", "bars"),
    [
        (True, {}, True),
        (True, {"NO_COLOR": "1"}, True),
        (True, {"TERM": "dumb"}, False),
        (False, {}, False),
        (False, {"FORCE_COLOR": "1"}, False),
    ],
    ids=["terminal", "no colour", "dumb", "file", "file of a build server"],
)
def test_bars_are_drawn_on_a_terminal_alone(errors, clock, terminal, environment, bars):
    """Control sequences reach only a terminal that knows them; NO_COLOR leaves the bar and takes its colours."""
    stream = errors(terminal=terminal, **environment)
    with show_progress() as progress:
        task = progress.add("checking", 3, unit="cases", announce=True)
        for _ in range(3):
            task.advance(loss=0.5)
    with show_steps("opening") as step:
        step("hashing")
    text = stream.getvalue()
    assert ("\x1b[" in text) == bars
    assert "checking" in text
    if not bars:
        assert text.splitlines()[-2:] == ["opening", "hashing"]
    if "NO_COLOR" in environment:
        assert "\x1b[3" not in text


@pytest.mark.parametrize("columns", [40, 80])
def test_bar_fits_the_terminal(errors, columns):
    """No line of the bars is wider than the terminal, with the numbers of five folds."""
    stream = errors(terminal=True, COLUMNS=str(columns), NO_COLOR="1")
    with show_progress(transient=False) as progress:
        for fold in range(5):
            task = progress.add(f"fold {fold} ({fold + 1} of 5)", 20, unit="epochs")
            task.update(20, loss=0.123, validation_loss=12.345)
    import re

    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).replace("\r", "\n").splitlines()
    assert max(map(len, lines)) <= columns
    assert any("fold 4 (5 of 5)" in line and "20/20" in line for line in lines)


def test_quiet_shows_nothing(errors, clock):
    """With --quiet neither bars nor lines are shown; a warning is."""
    for terminal in (True, False):
        stream = errors(terminal=terminal)
        logging.getLogger(LOGGER).setLevel(logging.WARNING)
        with show_progress() as progress:
            task = progress.add("checking", 2, unit="cases", announce=True)
            clock.now += 100
            task.advance()
            progress.step("map")
            progress.line("left out: P1", level=logging.WARNING)
        with show_steps("opening"):
            pass
        assert stream.getvalue() == "left out: P1\n"


def test_verbose_shows_every_step(errors, clock):
    """With --verbose each step has its line."""
    stream = errors(terminal=False)
    logging.getLogger(LOGGER).setLevel(logging.DEBUG)
    count(clock, 3, 1)
    assert len(stream.getvalue().splitlines()) == 3


@pytest.mark.parametrize("terminal", [True, False])
def test_json_lines_hold_the_numbers(errors, clock, terminal):
    """With --log-json a line is an object with numbers, on a terminal too; a number that JSON lacks is left out."""
    stream = errors(terminal=terminal)
    write_json()
    with show_progress() as progress:
        task = progress.add("fold 1", 20, unit="epochs", done=2)
        clock.now += 30
        task.update(3, loss=0.5, validation_loss=math.nan)
    document = json.loads(stream.getvalue())
    del document["time"]
    assert document == {
        "level": "info", "logger": "tmi", "seconds": 30.0, "event": "progress", "task": "fold 1", "completed": 3,
        "unit": "epochs", "total": 20, "seconds_left": 510.0, "loss": 0.5,
        "message": "fold 1: 3 of 20 epochs; loss 0.500; about 8 min left",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3540, "59 min"), (11_100, "3 h 5 min"), (187_200, "2 d 4 h")],
)
def test_duration_is_short(seconds, text):
    """A time is given in its two largest units."""
    assert duration(seconds) == text
