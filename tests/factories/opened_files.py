"""Count how often files below a folder are opened, whatever opens them."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_watched: list[tuple[str, Counter[str]]] = []
_installed: list[bool] = []
_opening: list[Path] = [Path()]
"""File that `open` is about to open; its opener calls `os.open`, which is a second event of the same opening."""


def _on_event(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _watched and isinstance(arguments[0], str | bytes | os.PathLike):
        path, by_os = Path(os.fsdecode(arguments[0])), arguments[1] is None
        second = by_os and path == _opening[0]
        _opening[0] = Path() if by_os else path
        if second:
            return
        for folder, opened in _watched:
            if path.is_absolute() and path.is_relative_to(folder):
                opened[path.name] += 1


@contextmanager
def count_opens(folder: Path) -> Iterator[Counter[str]]:
    """Name of a file below the folder -> number of times that it was opened in the block."""
    if not _installed:
        sys.addaudithook(_on_event)  # stays for the process; it does nothing outside a block
        _installed.append(True)
    entry = (str(folder), Counter[str]())
    _watched.append(entry)
    try:
        yield entry[1]
    finally:
        _watched.remove(entry)
