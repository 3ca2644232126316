"""Ctrl-C at a fixed step of a training in this process."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tmi.training.module import FoldModule


@contextmanager
def ctrl_c_in_epoch(epoch: int) -> Iterator[None]:
    """Let the first step of an epoch (they count from 0) meet Ctrl-C."""
    honest = FoldModule.training_step

    def interrupted(self, batch, index):
        if self.current_epoch == epoch:
            signal.raise_signal(signal.SIGINT)
        return honest(self, batch, index)

    # what a shell starts in the background ignores the signal
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FoldModule, "training_step", interrupted)
            yield
    finally:
        signal.signal(signal.SIGINT, before)
