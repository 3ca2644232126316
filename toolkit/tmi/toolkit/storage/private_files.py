"""Files and folders of one user, for what is derived from patient data and for what a program trusts without a proof.

Everything is created for its owner only (folders 0700, files 0600), whatever the umask. What is read must belong to the
user, and no other user may have been able to write it: in a folder that users share, an entry of somebody else is never
used. Systems without POSIX permissions have no such owner and mode; nothing is checked there.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from tmi.toolkit.storage.bounded_files import OPEN_FLAGS, open_regular, require_regular

PART = ".part"
"""Suffix of a file that is being written."""


def make_private_folder(folder: Path) -> None:
    """Make a folder for its owner only, and its parent if that is missing; an existing one loses other users' access.

    Raises:
        OSError: it cannot be made, or it belongs to another user (PermissionError).
    """
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.mkdir(exist_ok=True, mode=0o700)
    status = folder.stat()
    if not _is_own(status):
        raise _foreign(folder)
    if stat.S_IMODE(status.st_mode) & 0o077:
        folder.chmod(0o700)


def write_private(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a file as the concatenation of `pieces`, atomically, in a folder made by `make_private_folder`.

    Raises:
        OSError: the disk is full, or the folder cannot be written or belongs to another user.
    """
    make_private_folder(path.parent)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=PART)  # its mode is 0600
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            for piece in pieces:
                stream.write(piece)
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def open_private(path: Path) -> BinaryIO:
    """Open a file of the user for reading.

    Raises:
        OSError: it does not exist, cannot be read, or is not a regular file (a link, a pipe). PermissionError: the file
            or its folder belongs to another user or can be written by one.
    """
    if os.open not in os.supports_dir_fd or not hasattr(os, "geteuid"):
        return open_regular(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _require_private(os.fstat(folder), path.parent)
        # Opened relative to the folder that was checked: its name may be given to another folder meanwhile.
        stream = os.fdopen(os.open(path.name, OPEN_FLAGS | os.O_NOFOLLOW, dir_fd=folder), "rb")
    finally:
        os.close(folder)
    try:
        status = os.fstat(stream.fileno())
        _require_private(status, path)
        require_regular(status, path)
    except BaseException:
        stream.close()
        raise
    return stream


def _require_private(status: os.stat_result, path: Path) -> None:
    """Raise unless only the user can write a file or folder."""
    if not _is_own(status):
        raise _foreign(path)
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(errno.EPERM, "other users can write it", str(path))


def _is_own(status: os.stat_result) -> bool:
    return not hasattr(os, "geteuid") or status.st_uid == os.geteuid()


def _foreign(path: Path) -> PermissionError:
    return PermissionError(errno.EPERM, "belongs to another user", str(path))
