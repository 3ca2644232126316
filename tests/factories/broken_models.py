"""Rows of a package that does not fit this version, for entry points."""

from __future__ import annotations

from typing import Any

TEXT = "no row"


def __getattr__(name: str) -> Any:
    if name == "RAISES":
        raise TypeError("made for another version")
    raise AttributeError(name)
