"""Suppression of third-party warnings and logs, in threads with overlapping blocks."""

from __future__ import annotations

import logging
import threading
import warnings

import pytest

from tmi.toolkit.compute.silence import Ignored, quiet
from tmi.toolkit.radiomics.pyradiomics import pyradiomics_quiet


def state() -> tuple[list[object], int]:
    return list(warnings.filters), logging.getLogger("radiomics").level


def overlap(first, second) -> list[tuple[list[object], int]]:
    """Run two threads: the first enters, the second enters, the first leaves, the second leaves; return the states."""
    inside, left = threading.Event(), threading.Event()
    states = []

    def one():
        with first():
            inside.set()
            assert entered.wait(10)
        states.append(state())
        left.set()

    def two():
        assert inside.wait(10)
        with second():
            entered.set()
            assert left.wait(10)
            states.append(state())
        states.append(state())

    entered = threading.Event()
    threads = [threading.Thread(target=target) for target in (one, two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    return states


@pytest.mark.parametrize("second", [quiet, pyradiomics_quiet], ids=["warnings", "radiomics"])
def test_overlapping_blocks_restore_filters_and_level(second):
    """After both blocks the process has the filters and the level that it had before."""
    before = state()
    states = overlap(pyradiomics_quiet, second)
    assert len(states) == 3
    assert state() == before
    assert states[-1] == before


def test_block_stays_quiet_when_another_ends():
    """The end of one block does not end the suppression of another active block."""
    states = overlap(pyradiomics_quiet, pyradiomics_quiet)
    filters, level = states[1]
    assert level > logging.CRITICAL
    assert any(entry[0] == "ignore" and entry[2] is Warning for entry in filters[:1])


def test_only_named_warnings_are_ignored():
    """Warnings with another text or category are still emitted."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet([Ignored("known", FutureWarning)]):
            warnings.warn("known thing", FutureWarning, stacklevel=1)
            warnings.warn("known thing", UserWarning, stacklevel=1)
            warnings.warn("a new thing", FutureWarning, stacklevel=1)
        warnings.warn("known thing", FutureWarning, stacklevel=1)
    texts = [(str(w.message), w.category) for w in caught]
    assert texts == [("known thing", UserWarning), ("a new thing", FutureWarning), ("known thing", FutureWarning)]


def test_filters_survive_external_catch_warnings():
    """A block that ends inside other code's `catch_warnings` leaves nothing behind in either list."""
    before = list(warnings.filters)
    block = quiet()
    block.__enter__()
    with warnings.catch_warnings():
        block.__exit__(None, None, None)
        assert list(warnings.filters) == before
    assert list(warnings.filters) == before


def test_nested_blocks_take_the_quieter_level():
    """The level is the highest that an active block requests."""
    logger = logging.getLogger("tmi-test-quiet")
    with quiet([], loggers=[logger.name], level=logging.CRITICAL):
        with quiet([], loggers=[logger.name], level=logging.ERROR):
            assert logger.level == logging.CRITICAL
        assert logger.level == logging.CRITICAL
    assert logger.level == logging.NOTSET
