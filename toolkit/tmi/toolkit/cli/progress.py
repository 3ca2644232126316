"""Progress of a command on standard error: bars on a terminal, lines of the log at intervals elsewhere.

Lines replace the bars if standard error is a file or a pipe, on a terminal that cannot redraw a line (`TERM=dumb`) and
with `--log-json`; `--quiet` shows neither. A line states what is done, of how much, and the time left. Its numbers and
titles hold no patient data.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from tmi.toolkit.cli.console import make_console
from tmi.toolkit.cli.log import is_verbose, log, shows_progress, writes_json

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

SHORTEST, SHARE, LONGEST = 10.0, 0.02, 60.0
"""Seconds between two lines: this share of the time since the start, within these bounds."""
WAITING = 60.0
"""Seconds without a line after which a line says what is being done."""
WATCH = 5.0
"""Seconds between two looks at the time of the last line."""
NARROW = 60
"""Columns below which a terminal shows the numbers without the bar."""


class Task(Protocol):
    """Work of a known or unknown number of steps."""

    def advance(self, **facts: float) -> None:
        """Count one more step."""

    def update(
        self, completed: int, total: int | None = None, *, seconds_left: float | None = None, **facts: float
    ) -> None:
        """Set the number of completed steps.

        Args:
            completed: steps that are done.
            total: steps in all; None: as before.
            seconds_left: estimate of the caller; None: from the steps so far.
            facts: numbers of the last step, for example a loss.
        """

    def step(self, text: str, *, seconds_left: float | None = None) -> None:
        """State a part of the current step that takes long; a line only if one is due.

        Args:
            text: the part: "step 40 of 120".
            seconds_left: estimate of the caller for the whole task.
        """


class Progress(Protocol):
    """What a command shows while it works."""

    def add(self, title: str, total: int | None, *, unit: str, done: int = 0, announce: bool = False) -> Task:
        """Add a task.

        Args:
            title: what is done.
            total: number of steps; None: not known yet.
            unit: name of the steps: "cases".
            done: steps that an earlier run did.
            announce: whether the first and the last step have a line in any case. Otherwise a task that is shorter than
                the interval has none.
        """

    def remove(self, task: Task) -> None:
        """Remove the bar of a task."""

    def step(self, text: str) -> None:
        """State what is being done now; a line only if one is due."""

    def line(self, *lines: str, level: int = logging.INFO, **fields: Any) -> None:
        """Write lines that stay, above the bars."""


@contextmanager
def show_progress(*, transient: bool = True) -> Iterator[Progress]:
    """Show the progress of the block on standard error.

    Args:
        transient: whether bars disappear at the end of the block.
    """
    console = make_console(stderr=True)
    if _draws(console):
        with _rich_progress(console, transient=transient) as bars:
            yield _Bars(bars)
    else:
        lines = _Lines()
        with lines.waiting():
            yield lines


@contextmanager
def show_steps(first: str) -> Iterator[Callable[[str], None]]:
    """Show the current step of the block, without a number of steps: a spinner on a terminal, elsewhere a line each.

    Args:
        first: the first step.

    Yields:
        Function that states the next step.
    """
    console = make_console(stderr=True)
    if _draws(console):
        with console.status(first) as status:
            yield lambda text: status.update(text)
    else:
        lines = _Lines()
        with lines.waiting():
            lines.write(first, event="step")
            yield lambda text: lines.write(text, event="step")


def duration(seconds: float) -> str:
    """Return a time in its two largest units: `40 s`, `12 min`, `3 h 5 min`, `2 d 4 h`."""
    minutes = round(seconds / 60)
    if seconds < 59.5:
        return f"{max(0, round(seconds))} s"
    if minutes < 60:
        return f"{minutes} min"
    hours = round(minutes / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 24 * 60 else f"{hours // 24} d {hours % 24} h"


def _draws(console: Any) -> bool:
    """Whether bars can be drawn: on a terminal, which `FORCE_COLOR` does not make of a file."""
    isatty = getattr(console.file, "isatty", lambda: False)
    return shows_progress() and not writes_json() and console.is_interactive and isatty()


def _rich_progress(console: Any, *, transient: bool) -> RichProgress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns: list[Any] = [TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn(compact=True)]
    if console.width >= NARROW:
        columns.insert(1, BarColumn(bar_width=min(40, console.width // 4)))
        columns.append(TextColumn("{task.fields[note]}"))
    # the speed is that of the last hour: an epoch may take many minutes
    return Progress(*columns, console=console, transient=transient, speed_estimate_period=3600)


def _numbers(facts: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in facts.items())


class _Bars:
    """Bars of rich."""

    def __init__(self, bars: RichProgress) -> None:
        self._bars = bars

    def add(self, title: str, total: int | None, *, unit: str, done: int = 0, announce: bool = False) -> Task:
        return _BarTask(self._bars, self._bars.add_task(title, total=total, completed=done, note=""))

    def remove(self, task: Task) -> None:
        assert isinstance(task, _BarTask)
        self._bars.remove_task(task.number)

    def step(self, text: str) -> None:
        if self._bars.tasks:
            self._bars.update(self._bars.tasks[-1].id, note=text)

    def line(self, *lines: str, level: int = logging.INFO, **fields: Any) -> None:
        log(level, *lines, **fields)  # rich writes it above the bars


class _BarTask:
    def __init__(self, bars: RichProgress, number: Any) -> None:
        self._bars, self.number = bars, number

    def advance(self, **facts: float) -> None:
        changed: dict[str, Any] = {"note": _numbers(facts)} if facts else {}
        self._bars.update(self.number, advance=1, **changed)

    def update(
        self, completed: int, total: int | None = None, *, seconds_left: float | None = None, **facts: float
    ) -> None:
        changed: dict[str, Any] = {"note": _numbers(facts)} if facts else {}
        self._bars.update(self.number, completed=completed, total=total, **changed)

    def step(self, text: str, *, seconds_left: float | None = None) -> None:
        self._bars.update(self.number, note=text)


class _Lines:
    """Lines of the log.

    Args:
        clock: function that returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self.clock = clock
        self.start = self._last = clock()
        self.current = ""

    def add(self, title: str, total: int | None, *, unit: str, done: int = 0, announce: bool = False) -> Task:
        self.current = title
        return _LineTask(self, title, total, unit=unit, done=done, announce=announce)

    def remove(self, task: Task) -> None:
        """Nothing is shown."""

    def step(self, text: str) -> None:
        self.current = text
        if self.due():
            self.write(text, event="step")

    def line(self, *lines: str, level: int = logging.INFO, **fields: Any) -> None:
        log(level, *lines, **fields)

    def due(self) -> bool:
        """Whether the interval since the last line has passed; with `--verbose` every step has its line."""
        now = self.clock()
        return is_verbose() or now - self._last >= interval(now - self.start)

    def write(self, text: str, **fields: Any) -> None:
        """Write a line; the interval starts again."""
        self.current = text
        self._last = self.clock()
        log(logging.INFO, text, seconds=round(self._last - self.start, 3), **fields)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Write a line at least every `WAITING` seconds, from a thread."""
        end = threading.Event()

        def watch() -> None:
            while not end.wait(WATCH):
                self.write_waiting()

        with ExitStack() as stack:
            if shows_progress():
                thread = threading.Thread(target=watch, name="progress", daemon=True)
                thread.start()
                stack.callback(thread.join)
                stack.callback(end.set)
            yield

    def write_waiting(self) -> None:
        """Write what is being done, if the last line is long ago."""
        now = self.clock()
        silent = now - self._last
        if self.current and silent >= WAITING:
            current = self.current.removesuffix(" ...")
            self.write(f"working for {duration(now - self.start)}; last: {current}", event="waiting")
            self.current = current


class _LineTask:
    def __init__(self, lines: _Lines, title: str, total: int | None, *, unit: str, done: int, announce: bool) -> None:
        self._lines, self._title, self._total, self._unit = lines, title, total, unit
        self._done = self._before = done
        self._announce, self._start = announce, lines.clock()
        self._written = False

    def advance(self, **facts: float) -> None:
        self.update(self._done + 1, None, **facts)

    def update(
        self, completed: int, total: int | None = None, *, seconds_left: float | None = None, **facts: float
    ) -> None:
        first = not self._written
        self._done, self._total = completed, self._total if total is None else total
        last = self._done == self._total
        if not (self._lines.due() or (self._announce and first) or (last and (self._announce or self._written))):
            return
        self._written = True
        if seconds_left is None:
            seconds_left = self._seconds_left()
        finite = {name: value for name, value in facts.items() if math.isfinite(value)}
        parts = [f"{self._title}: {self._done}{f' of {self._total}' if self._total else ''} {self._unit}"]
        parts += [_numbers(finite)] if finite else []
        parts += [f"about {duration(seconds_left)} left"] if seconds_left else []
        known = {"total": self._total, "seconds_left": None if seconds_left is None else round(seconds_left, 1)}
        self._lines.write(
            "; ".join(parts),
            event="progress",
            task=self._title,
            completed=self._done,
            unit=self._unit,
            **{name: value for name, value in known.items() if value is not None},
            **finite,
        )

    def step(self, text: str, *, seconds_left: float | None = None) -> None:
        self._lines.current = f"{self._title}: {text}"
        if not self._lines.due():
            return
        self._written = True
        left = f"; about {duration(seconds_left)} left" if seconds_left else ""
        known = {} if seconds_left is None else {"seconds_left": round(seconds_left, 1)}
        self._lines.write(f"{self._title}: {text}{left}", event="step", task=self._title, **known)

    def _seconds_left(self) -> float | None:
        done = self._done - self._before
        if self._total is None or done <= 0:
            return None
        return (self._lines.clock() - self._start) / done * (self._total - self._done)


def interval(elapsed: float) -> float:
    """Seconds between two lines after `elapsed` seconds."""
    return min(max(SHORTEST, SHARE * elapsed), LONGEST)
