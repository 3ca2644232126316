"""What a user may have meant: the known words and existing paths that are closest to a mistyped one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

MAX_ENTRIES = 2000
"""Number of entries of a folder that are compared."""


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """Return the question `did you mean 'train'?`; None if no known word is close."""
    close = closest(word, known)
    return None if close is None else f"did you mean {close!r}?"


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is closest to a mistyped one, upper case ignored; None if none is close."""
    by_lower = {name.casefold(): name for name in known}
    matches = get_close_matches(word.casefold(), by_lower, n=1)
    return by_lower[matches[0]] if matches else None


def similar_path(path: Path) -> Path | None:
    """Return the existing path that is closest to a missing one, each part of it; None if a part has no close name."""
    found = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts:
        if not os.path.lexists(found / part):
            close = _closest_name(part, _names(found))
            if close is None:
                return None
            part = close
        found /= part
    return found


def _closest_name(name: str, existing: list[str]) -> str | None:
    """Return the closest name of a folder's entries; names that share little but their ending are not close."""
    close = closest(name, existing)
    return close if close is not None and closest(Path(name).stem, [Path(close).stem]) is not None else None


def _names(folder: Path) -> list[str]:
    """Names of the first entries of a folder, without hidden ones; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry, _ in zip(entries, range(MAX_ENTRIES), strict=False)
                    if not entry.name.startswith(".")]  # fmt: skip
    except OSError:
        return []
