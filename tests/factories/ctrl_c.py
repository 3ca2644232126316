"""Ctrl-C at a fixed step of a training in this process, as Python tells it: by `KeyboardInterrupt`.

No signal is sent to the test run; `test_resume.py` sends one to a process of its own.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tmi.training.loop.lightning_module import FoldModule


@contextmanager
def ctrl_c_in_epoch(epoch: int) -> Iterator[None]:
    """Let the first step of an epoch (they count from 0) meet Ctrl-C."""
    honest = FoldModule.training_step

    def interrupted(self, batch, index):
        if self.current_epoch == epoch:
            raise KeyboardInterrupt
        return honest(self, batch, index)

    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FoldModule, "training_step", interrupted)
            yield
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning has it ignored after the first
