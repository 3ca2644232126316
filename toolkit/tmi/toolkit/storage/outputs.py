"""Outputs of commands: checked before the work, and locked for as long as they are written.

`output_lock` holds a lock file beside an output, `.NAME.lock`, or `.tmi.lock` inside it where only the output's own
folder is writable (a mounted volume). The file records its owner: process, host and start time. A second process ends
at once with exit code 2. The operating system releases the lock of a killed process; the next one removes what the
recorded owner left behind, and nothing else. Writing the lock file also shows, before any work, whether the place can
be written and has free space.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

from tmi.toolkit.errors import TmiError, UnavailableError, UsageError
from tmi.toolkit.storage.file_lock import closed_on_error, open_locked

LOCK_FILE = ".tmi.lock"
"""Name of the lock file inside an output whose parent folder cannot be written."""
PROBE_BYTES = 64 * 2**10
"""Bytes that are written to find out whether there is free space."""
MAX_NAME_BYTES = 100
"""Longer names are shortened in the names of lock files and staged folders, which must not exceed 255 bytes."""
SPACE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error numbers of a full disk, an exhausted quota, and a limit on the size of files."""
ACCESS_ERRORS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
"""Error numbers of a place that the user must not write."""
SYSTEM_FOLDERS = frozenset(map(Path, ("/dev", "/proc", "/sys")))
"""Folders of the operating system, where no output belongs."""
SHARED_MEMORY = Path("/dev/shm")
"""Folder in `SYSTEM_FOLDERS` that holds ordinary files."""
TRIES = 5
"""Attempts to remove what a killed process left, while its workers end."""

_held: dict[Path, tuple[int, int]] = {}
"""Output -> thread of this process that holds its lock, and number of its nested blocks."""
_guard = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Process that writes an output."""

    pid: int
    """Process id."""
    host: str
    """Name of its machine."""
    start: str
    """Start time of the process as the system counts it; it distinguishes processes that had the same id."""
    since: str
    """Local time at which it took the lock, ISO 8601."""

    @property
    def token(self) -> str:
        """Part of the names of its staged folders."""
        return f"{self.host}-{self.pid}-{self.start}"

    @property
    def is_other_alive(self) -> bool:
        """Whether it is another process of this machine that still runs."""
        is_here = self.host == _host() and self.pid != os.getpid()
        return is_here and self.start != "" and _start_of(self.pid) == self.start


@contextmanager
def output_lock(target: Path, *, kind: str = "output") -> Iterator[None]:
    """Hold the lock of an output file or folder inside the block. Nested blocks of one thread share the lock.

    The parent folders are created. The lock file is removed at the end.

    Args:
        target: file or folder that the block writes; it need not exist.
        kind: what it is, for messages: "bundle".

    Raises:
        UsageError: another process or thread writes it, its place cannot be written, or no file can stand there.
        UnavailableError: its disk is full.
    """
    _require_ordinary(target, kind)
    target = target.resolve()
    thread = threading.get_ident()
    with _guard:
        holder, depth = _held.get(target, (thread, 0))
        if holder != thread:
            raise _busy_error(target, kind, this_owner())
        _held[target] = (thread, depth + 1)
    try:
        with nullcontext() if depth else _lock_file(target, kind):
            yield
    finally:
        with _guard:
            del _held[target]
            if depth:
                _held[target] = (thread, depth)


def require_place(target: Path, *, kind: str) -> None:
    """Check, before anything is imported or read, that an output can stand at a place; nothing is created.

    Raises:
        UsageError: it is no place for a file, or its folder cannot be written.
    """
    _require_ordinary(target, kind)
    folder = target.absolute().parent
    while not folder.exists():
        folder = folder.parent
    writable = [os.access(place, os.W_OK | os.X_OK) for place in (folder, target) if place.is_dir()]
    if writable and not any(writable):
        raise write_error(target.absolute(), PermissionError(errno.EACCES, os.strerror(errno.EACCES)), kind=kind)


def _require_ordinary(target: Path, kind: str) -> None:
    """Check that an output is not `-`, a pipe, a device, or inside a folder of the system's own.

    An output is renamed to its place, so that it is whole or absent: `--force` would replace the device itself.

    Raises:
        UsageError: it is one of them.
    """
    if str(target) == "-":
        raise UsageError(
            f"{kind} - is not a file", fix="name a file, or use --json where a command prints its document"
        )
    is_special = target.exists() and not (target.is_file() or target.is_dir())
    folder = target.absolute().parent
    is_system = any(f in SYSTEM_FOLDERS for f in (folder, *folder.parents)) and not folder.is_relative_to(SHARED_MEMORY)
    if is_special or is_system:
        raise UsageError(
            f"{kind} {target} is a pipe, a device or a file of the system",
            fix="name a file in an ordinary folder, or use --json where a command prints its document",
        )


@contextmanager
def _lock_file(target: Path, kind: str) -> Iterator[None]:
    try:
        stream, path = _open_lock_file(target, kind)
        with closed_on_error(stream):
            before = _read_owner(stream)
            if before is not None and before.is_other_alive:  # the file system has no locks
                raise _busy_error(target, kind, before)
            try:
                _remove_leftovers(target, before)
                _write_owner(stream)
            except OSError:
                path.unlink()
                raise
    except OSError as error:
        raise write_error(target, error, kind=kind) from error
    try:
        yield
    finally:
        with suppress(OSError):  # before the lock is released: the next owner's file must stay
            path.unlink()
        stream.close()


def _open_lock_file(target: Path, kind: str) -> tuple[BinaryIO, Path]:
    beside = target.with_name(f".{short_name(target.name)}.lock")
    paths = [beside]
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
        return open_locked(beside, busy=lambda: _busy_error(target, kind, _owner_of(beside))), beside
    except OSError as error:
        if error.errno not in ACCESS_ERRORS or not target.is_dir():
            raise
        paths.append(target / LOCK_FILE)
    inside = paths[-1]
    return open_locked(inside, busy=lambda: _busy_error(target, kind, _owner_of(inside))), inside


def _write_owner(stream: BinaryIO) -> None:
    """Write this process as the owner, with a probe of the free space.

    Raises:
        OSError: the disk is full.
    """
    record = json.dumps(asdict(this_owner())).encode()
    stream.seek(0)
    stream.write(record.ljust(PROBE_BYTES))
    stream.flush()
    os.fsync(stream.fileno())
    stream.truncate(len(record))


def _read_owner(stream: BinaryIO) -> Owner | None:
    try:
        value = json.loads(stream.read(PROBE_BYTES))
        owner = Owner(**value)
    except (ValueError, TypeError, RecursionError):  # empty, or of another program
        return None
    return owner if all(isinstance(v, str) for v in (owner.host, owner.start, owner.since)) else None


def _owner_of(path: Path) -> Owner | None:
    try:
        with path.open("rb") as stream:
            return _read_owner(stream)
    except OSError:
        return None


def _busy_error(target: Path, kind: str, owner: Owner | None) -> UsageError:
    who = "" if owner is None else f" (process {owner.pid} on {owner.host}, since {owner.since})"
    return UsageError(
        f"{kind} {target} is being written by another command{who}", fix="wait until it ends, or name another path"
    )


def write_error(target: Path, error: OSError, *, kind: str = "output") -> TmiError:
    """Return the error of an output that cannot be written: exit code 5 if its disk is full, else 2."""
    reason = error.strerror or type(error).__name__
    what = f"{kind} {target} cannot be written: {reason}"
    if error.errno in SPACE_ERRORS:
        return UnavailableError(what, fix="free space on its disk, or name a path on another one")
    return UsageError(what, fix="name a path in a folder that you can write")


def staged_path(target: Path, owner: Owner) -> Path:
    """Path of the folder in which a process prepares `target`: beside it, so that a rename stays on one disk."""
    return target.with_name(f".{short_name(target.name)}.{owner.token}.part")


def short_name(name: str) -> str:
    """Return a name of at most `MAX_NAME_BYTES` bytes that is different for different names."""
    data = os.fsencode(name)
    if len(data) <= MAX_NAME_BYTES:
        return name
    start = data[: MAX_NAME_BYTES - 17].decode("utf-8", errors="ignore")
    return f"{start}-{hashlib.sha256(data).hexdigest()[:16]}"


def _remove_leftovers(target: Path, owner: Owner | None) -> None:
    """Remove the staged folder of a killed owner, and that of earlier versions, which had no owner."""
    paths = [target.with_name(f".{short_name(target.name)}.part")]
    if owner is not None and owner.token != this_owner().token and owner.token == Path(owner.token).name:
        paths.append(staged_path(target, owner))
    for path in paths:
        remove(path)


def remove(path: Path) -> None:
    """Remove a temporary file or folder, if it exists. A worker of a killed process may still write into it."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    for _ in range(TRIES):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        time.sleep(0.1)
    shutil.rmtree(path)


def this_owner() -> Owner:
    """Return this process as an owner."""
    return Owner(pid=os.getpid(), host=_host(), start=_start_of(os.getpid()), since=time.strftime("%Y-%m-%dT%H:%M:%S"))


@cache
def _host() -> str:
    return "".join(c if c.isalnum() or c == "." else "_" for c in socket.gethostname())[:40]


def _start_of(pid: int) -> str:
    """Start time of a process in clock ticks after the boot; empty if there is none, or on other systems than Linux."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    # The name of the program, in parentheses, may hold spaces: fields are counted behind it.
    return status.rpartition(")")[2].split()[19]
