"""Thread-safe suppression of warnings and log messages of third-party code inside a block.

`warnings.catch_warnings` saves and restores the filters of the whole process. If the blocks of two threads overlap,
they restore each other's state, and the process stays silenced for good. `quiet` adds filters and removes exactly
those, and it restores the level of a logger when the last block that silences the logger ends.
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
    """Rule for warnings to ignore."""

    message: str = ""
    """Regular expression for the start of the text; empty matches any text."""
    category: type[Warning] = Warning
    """Category, or a base class of it."""


_lock = Lock()
_numbers = itertools.count()
_levels: dict[str, tuple[int, list[int]]] = {}
"""Logger name -> its original level, and the levels requested by the active blocks."""


@contextmanager
def quiet(
    ignored: Sequence[Ignored] = (Ignored(),), *, loggers: Sequence[str] = (), level: int = logging.CRITICAL + 1
) -> Iterator[None]:
    """Ignore warnings and silence loggers inside the block. The filters apply to all threads of the process.

    Args:
        ignored: warnings to ignore; all by default.
        loggers: names of loggers to silence.
        level: lowest level that is still logged.
    """
    added = [_add_filter(rule) for rule in ignored]
    for name in loggers:
        _request_level(name, level)
    try:
        yield
    finally:
        for name in loggers:
            _release_level(name, level)
        for filters, entry in added:
            _remove_filter(filters, entry)


def _add_filter(rule: Ignored) -> tuple[list[object], object]:
    """Insert a filter that is unique, so that its removal cannot remove the filter of another block."""
    with _lock:
        # A comment in the expression makes the entry unique; `warnings` merges equal entries.
        warnings.filterwarnings("ignore", message=f"(?#{next(_numbers)}){rule.message}", category=rule.category)
        filters: list[object] = warnings.filters  # type: ignore[assignment]
        return filters, filters[0]


def _remove_filter(filters: list[object], entry: object) -> None:
    with _lock:
        # `catch_warnings` in other code may have replaced the list and will restore the original one later.
        for entries in (filters, warnings.filters):
            if entry in entries:
                entries.remove(entry)  # type: ignore[union-attr]


def _request_level(name: str, level: int) -> None:
    with _lock:
        logger = logging.getLogger(name)
        requested = _levels.setdefault(name, (logger.level, []))[1]
        requested.append(level)
        logger.setLevel(max(requested))


def _release_level(name: str, level: int) -> None:
    with _lock:
        original, requested = _levels[name]
        requested.remove(level)
        logging.getLogger(name).setLevel(max(requested) if requested else original)
        if not requested:
            del _levels[name]
