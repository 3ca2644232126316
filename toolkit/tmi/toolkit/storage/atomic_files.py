"""Atomic writes of files and folders, which survive a kill, and protection against overwriting."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.storage.bounded_files import DOCUMENT_BYTES
from tmi.toolkit.storage.documents import DocumentError, parse_json, read_document
from tmi.toolkit.storage.hashing import canonical_json
from tmi.toolkit.storage.outputs import (
    LOCK_FILE,
    output_lock,
    remove,
    require_place,
    short_name,
    staged_path,
    this_owner,
)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically, with a temporary file in the same folder and a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())  # some file systems report a full disk here, others lose the text in a crash
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value in canonical JSON form, atomically."""
    write_text(path, canonical_json(value))


def read_json(path: Path, *, kind: str, data: bytes | None = None) -> Any:
    """Read a JSON file that this package wrote.

    Args:
        path: file to read.
        kind: kind of its folder ("run", "bundle"), for error messages.
        data: content of the file, if the caller has read it; the file is then not opened.

    Raises:
        DamagedError: the file is missing, is no regular file, is too large, or is no JSON within the limits of
            `tmi.toolkit.storage.documents`.
    """
    try:
        return read_document(path, max_bytes=DOCUMENT_BYTES) if data is None else parse_json(data)
    except FileNotFoundError as error:
        raise DamagedError(f"{kind}: {path.name} is missing in {path.parent}", fix=f"make the {kind} again") from error
    except (OSError, DocumentError) as error:
        reason = f"it {error.reason}" if isinstance(error, DocumentError) else error.strerror or type(error).__name__
        raise DamagedError(f"{kind}: {path} cannot be read as JSON: {reason}", fix=f"make the {kind} again") from error


def require_absent(path: Path, *, force: bool, kind: str) -> None:
    """Raise if writing to `path` would overwrite something; a lock file inside it is nothing.

    Raises:
        UsageError: `path` is a file or a non-empty folder, and `force` is not set; or nothing can be written there.
    """
    require_place(path, kind=kind)
    occupied = any(p.name != LOCK_FILE for p in path.iterdir()) if path.is_dir() else path.exists()
    if occupied and not force:
        raise UsageError(f"{kind} {path} exists", fix="name another path, or replace it with --force")


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder next to `target`; it replaces `target` if the block succeeds and is deleted otherwise.

    All of its files and folders get the mode that the umask gives to new ones, whatever library wrote them. The target
    is locked meanwhile. The name of the staged folder holds its owner, so that no process writes into another's; the
    next call removes the folder of an owner that was killed.

    The old folder is renamed first and deleted last. After a kill, `target` is therefore either the old folder or the
    new one. Between the two renames it is missing; the next call then restores the old folder.

    Raises:
        UsageError: `target` is the working directory or one of its parents, is being written by another process, or
            cannot be written.
        UnavailableError: its disk is full.
    """
    resolved = target.resolve()
    if resolved == Path.cwd() or resolved in Path.cwd().parents:
        raise UsageError(f"{target} is the working directory or one of its parents", fix="name a folder inside it")
    with output_lock(resolved), _stage(resolved) as stage:
        yield stage


@contextmanager
def _stage(target: Path) -> Iterator[Path]:
    """`staged_folder` of a locked target."""
    stage, old = staged_path(target, this_owner()), target.with_name(f".{short_name(target.name)}.old")
    if old.exists() and not target.exists():  # an earlier call was killed between its two renames
        os.replace(old, target)
    remove(old)
    remove(stage)
    stage.mkdir()
    try:
        yield stage
        for path in stage.rglob("*"):
            follow_umask(path)
        if target.exists():
            os.replace(target, old)
        os.replace(stage, target)
        remove(old)
    finally:
        if old.exists() and not target.exists():
            os.replace(old, target)
        remove(stage)


def follow_umask(path: Path) -> None:
    """Give a file or folder the mode that a new one gets. Some libraries (safetensors) write for the owner only."""
    if not path.is_symlink():
        path.chmod((0o777 if path.is_dir() else 0o666) & ~_umask())


def _umask() -> int:
    """Umask of the process, on Linux without the moment in which another thread would create files without one."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
