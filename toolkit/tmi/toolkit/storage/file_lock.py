"""Exclusive file lock. The operating system releases it when the process ends, whatever the reason."""

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
    """Open a file for reading and writing and lock it. A missing file is created; an existing one is not truncated.

    If the operating system or the file system does not support locks, the file is opened without one.

    Raises:
        UsageError: another process holds the lock.
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
            # The lock belongs to the inode: it counts only if the path still names the file that was locked.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                    return stream
        stream.close()  # the former owner removed the file between open and lock: try again


@contextlib.contextmanager
def closed_on_error(stream: BinaryIO) -> Iterator[None]:
    """Close a file if the block raises."""
    try:
        yield
    except BaseException:
        stream.close()
        raise
