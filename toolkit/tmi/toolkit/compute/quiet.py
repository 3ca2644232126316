"""Silence warnings and loggers of third-party code for the length of a block, in several threads at once.

`warnings.catch_warnings` saves and restores the whole process's filters. Two threads whose blocks overlap restore each
other's state, and the process stays silenced (or unsilenced) for good. Here each block adds filters of its own and
removes just these, and a logger gets its level back when the last block that silences it ends.
"""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import NamedTuple


class Ignored(NamedTuple):
    """Warnings to ignore."""

    message: str = ""
    """Regular expression that the start of the text matches; empty: any text."""
    category: type[Warning] = Warning
    """Their class or a base of it."""


_lock = Lock()
_numbers = itertools.count()
_levels: dict[str, tuple[int, list[int]]] = {}
"""Logger name -> its own level, and the levels that the blocks in force ask for."""


@contextmanager
def quiet(
    ignored: Sequence[Ignored] = (Ignored(),), *, loggers: Sequence[str] = (), level: int = logging.CRITICAL + 1
) -> Iterator[None]:
    """Ignore warnings and silence loggers inside the block; other threads are affected while it lasts.

    Args:
        ignored: warnings to ignore; all by default.
        loggers: names of loggers to silence.
        level: the lowest level that these still log.
    """
    added = [_add_filter(rule) for rule in ignored]
    for name in loggers:
        _raise_level(name, level)
    try:
        yield
    finally:
        for name in loggers:
            _lower_level(name, level)
        for filters, entry in added:
            _remove_filter(filters, entry)


def _add_filter(rule: Ignored) -> tuple[list[object], object]:
    """Insert a filter that equals no other one, so that its removal cannot hit another block's."""
    with _lock:
        # A comment in the expression makes the entry unique; `warnings` would merge equal ones.
        warnings.filterwarnings("ignore", message=f"(?#{next(_numbers)}){rule.message}", category=rule.category)
        filters: list[object] = warnings.filters  # type: ignore[assignment]
        return filters, filters[0]


def _remove_filter(filters: list[object], entry: object) -> None:
    with _lock:
        # A `catch_warnings` of other code may have exchanged the list since, and will put the former one back.
        for entries in (filters, warnings.filters):
            if entry in entries:
                entries.remove(entry)  # type: ignore[union-attr]


def _raise_level(name: str, level: int) -> None:
    with _lock:
        logger = logging.getLogger(name)
        asked = _levels.setdefault(name, (logger.level, []))[1]
        asked.append(level)
        logger.setLevel(max(asked))


def _lower_level(name: str, level: int) -> None:
    with _lock:
        own, asked = _levels[name]
        asked.remove(level)
        logging.getLogger(name).setLevel(max(asked) if asked else own)
        if not asked:
            del _levels[name]
