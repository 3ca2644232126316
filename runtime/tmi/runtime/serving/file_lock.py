"""A file that one process at a time writes, held by a lock that goes with the process however it ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from tmi.toolkit.errors import UsageError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def open_locked(path: Path) -> BinaryIO:
    """Open for reading and writing, empty where nothing stood there; nothing is cut off.

    Where the system or the file system has no such locks, the file is opened without one.

    Raises:
        UsageError: another process has it open.
    """
    while True:
        stream = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+b")
        with closed_on_error(stream):
            if fcntl is None:
                return stream
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(
                    f"unfinished prediction {path} is being written by another tmi predict",
                    fix="wait until it ends, or name another output file",
                ) from error
            except OSError:
                return stream
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                    return stream
        stream.close()  # its owner ended and removed it after it was opened here


@contextlib.contextmanager
def closed_on_error(stream: BinaryIO) -> Iterator[None]:
    """Close a file where the block does not end well."""
    try:
        yield
    except BaseException:
        stream.close()
        raise
