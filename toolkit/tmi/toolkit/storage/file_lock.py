"""Exclusive file lock. The operating system releases it when the process ends, whatever the reason."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from tmi.toolkit.errors import UsageError
from tmi.toolkit.storage.bounded_files import require_regular

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

OPEN_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)


def open_locked(path: Path, *, busy: Callable[[], UsageError]) -> BinaryIO:
    """Open a file for reading and writing and lock it. A missing file is created; an existing one is not truncated.

    If the operating system or the file system does not support locks, the file is opened without one.

    Args:
        path: the file; a link is not followed.
        busy: makes the error if another process holds the lock.

    Raises:
        UsageError: another process holds the lock.
        OSError: the file cannot be opened, or is no regular file.
    """
    while True:
        descriptor = os.open(path, OPEN_FLAGS, 0o666)
        try:
            require_regular(os.fstat(descriptor), path)  # reading a pipe would wait for ever
        except OSError:
            os.close(descriptor)
            raise
        stream = os.fdopen(descriptor, "r+b")
        with closed_on_error(stream):
            if fcntl is None:
                return stream
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise busy() from error
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
