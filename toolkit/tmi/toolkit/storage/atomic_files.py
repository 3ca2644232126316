"""Writing files so that a kill never leaves half of one, and never over what exists unless told to."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.storage.hashing import canonical_json


def write_text(path: Path, text: str) -> None:
    """Write a text file through a temporary neighbour and a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value in canonical JSON form, atomically."""
    write_text(path, canonical_json(value))


def read_json(path: Path, *, kind: str) -> Any:
    """Read one of our own JSON files.

    Args:
        path: the file.
        kind: what it belongs to ("run", "bundle"), for the error text.

    Raises:
        DamagedError: missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DamagedError(f"{kind}: {path.name} is missing in {path.parent}", fix=f"make the {kind} again") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DamagedError(f"{kind}: {path} cannot be read as JSON", fix=f"make the {kind} again") from error


def require_absent(path: Path, *, force: bool, kind: str) -> None:
    """Refuse to overwrite.

    Raises:
        UsageError: `path` exists (a folder: is not empty) and `force` is not set.
    """
    occupied = any(path.iterdir()) if path.is_dir() else path.exists()
    if occupied and not force:
        raise UsageError(f"{kind} {path} exists", fix="name another place, or replace it with --force")


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A fresh folder beside `target` that replaces it when the block ends well and vanishes when it does not.

    What was at `target` is moved aside and removed last, so that a kill leaves the old folder or the new one under
    its name, or, between two renames, the old one beside it, from where the next call takes it back.

    Raises:
        UsageError: `target` is the working directory or a folder above it.
    """
    place = target.resolve()
    if place == Path.cwd() or place in Path.cwd().parents:
        raise UsageError(f"{target} is the folder you are in, or one above it", fix="name a folder inside it")
    target = place
    stage, old = (target.with_name(f".{target.name}.{suffix}") for suffix in ("part", "old"))
    if old.exists() and not target.exists():
        os.replace(old, target)
    _remove(old)
    _remove(stage)
    stage.mkdir(parents=True)
    try:
        yield stage
        if target.exists():
            os.replace(target, old)
        os.replace(stage, target)
        _remove(old)
    finally:
        if old.exists() and not target.exists():
            os.replace(old, target)
        _remove(stage)


def _remove(path: Path) -> None:
    """A file or folder of our own, where there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
