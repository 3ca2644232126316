"""Ctrl-C and SIGTERM end a command in one way: what it prepared is removed, one line is printed, the exit code is kept.

Both signals raise `KeyboardInterrupt` in the main thread, so that every `finally` runs: locks and staged files of the
outputs are removed. The operating system's action for SIGTERM would end the process without that.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import typer

from tmi.toolkit.cli.console import echo

INTERRUPTED = 128 + signal.SIGINT
"""Exit code after Ctrl-C: 130."""
TERMINATED = 128 + signal.SIGTERM
"""Exit code after SIGTERM: 143."""
REPEAT_S = 1.0
"""Seconds in which a second signal is the same event: `timeout` and `make` send one to the process and its group."""
LOST_S = 0.05
"""Seconds after which an interrupt is raised again that Python ignored, because it was raised in a callback."""
DEFAULTS: Mapping[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
"""Handlers that are replaced. A shell starts background jobs with ignored signals; these stay ignored."""


class Interrupts:
    """Signals that a command received."""

    def __init__(self) -> None:
        self.number: int | None = None
        """The first signal; None if there was none."""
        self._pid, self._time = os.getpid(), 0.0

    @property
    def exit_code(self) -> int:
        """Exit code of an interrupted command: 143 after SIGTERM, else 130."""
        return TERMINATED if self.number == signal.SIGTERM else INTERRUPTED

    def on_signal(self, number: int, _frame: FrameType | None = None) -> None:
        """Raise `KeyboardInterrupt`; a later signal ends the process at once."""
        if os.getpid() != self._pid:  # a forked process: as if there were no handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if self.number is None:
            self.number, self._time = number, time.monotonic()
            raise KeyboardInterrupt
        if time.monotonic() - self._time >= REPEAT_S:
            os._exit(128 + number)

    def raise_again(self) -> None:
        """Send the first signal again shortly: its `KeyboardInterrupt` was raised where Python ignores exceptions."""
        number, main = self.number, threading.main_thread().ident
        if number is None or main is None:
            return
        self.number = None
        timer = threading.Timer(LOST_S, signal.pthread_kill, (main, number))
        timer.daemon = True
        timer.start()


@contextmanager
def signals_as_interrupts() -> Iterator[Interrupts]:
    """Raise `KeyboardInterrupt` for Ctrl-C and SIGTERM inside the block; no effect outside the main thread."""
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    hook = sys.unraisablehook

    def on_ignored(ignored: Any) -> None:
        if issubclass(ignored.exc_type, KeyboardInterrupt):
            interrupts.raise_again()
        else:
            hook(ignored)

    replaced = [number for number, handler in DEFAULTS.items() if signal.getsignal(number) is handler]
    sys.unraisablehook = on_ignored
    try:
        for number in replaced:
            signal.signal(number, interrupts.on_signal)
        yield interrupts
    finally:
        sys.unraisablehook = hook
        for number in replaced:
            with suppress(ValueError, OSError):
                signal.signal(number, DEFAULTS[number])


@contextmanager
def interruptible(how: str) -> Iterator[None]:
    """End an interrupted command with a line that says how to go on.

    Args:
        how: the rest of the line: "continue with the same command and --resume".

    Raises:
        typer.Exit: exit code 130; the entry point makes it 143 after SIGTERM.
    """
    try:
        yield
    except KeyboardInterrupt:
        echo(f"interrupted; {how}", err=True, level=logging.WARNING)
        raise typer.Exit(INTERRUPTED) from None
