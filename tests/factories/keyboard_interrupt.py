"""A `KeyboardInterrupt` at a fixed step of a training in this process, as Ctrl-C raises it.

No signal is sent to the test run. `test_resume.py` sends a real signal to a training in another process.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tmi.training.loop.lightning_module import FoldModule


@contextmanager
def interrupt_in_epoch(epoch: int) -> Iterator[None]:
    """Raise `KeyboardInterrupt` in the first step of an epoch, counted from 0."""
    training_step = FoldModule.training_step

    def interrupted(self, batch, index):
        if self.current_epoch == epoch:
            raise KeyboardInterrupt
        return training_step(self, batch, index)

    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FoldModule, "training_step", interrupted)
            yield
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning ignores the signal after the first interrupt
