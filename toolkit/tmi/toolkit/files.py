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
from tmi.toolkit.hashing import canonical_json


def write_text(path: Path, text: str) -> None:
    """Write a text file through a temporary neighbour and a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


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
        raise UsageError(f"{kind} {path} exists", fix="name another with --out, or replace it with --force")


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A fresh folder beside `target` that replaces it when the block ends well and vanishes when it does not."""
    stage = target.with_name(f".{target.name}.part")
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    try:
        yield stage
        if target.exists():
            shutil.rmtree(target)
        os.replace(stage, target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
