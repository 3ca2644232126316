"""Paths of the repository, and the content of folders."""

from __future__ import annotations

import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""Top folder of the repository."""


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file at or below a folder, by its name relative to it."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
