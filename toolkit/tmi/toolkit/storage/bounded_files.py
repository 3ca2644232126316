"""The only way in which files from outside are opened: regular files only, without waiting, and up to a size limit.

Opening a pipe waits for a writer, and reading a device never ends. A file is therefore opened without blocking, and
its type and size are those of the open descriptor, so that it cannot be exchanged between the check and the reading.
Each kind of file has its limit, far above what real ones have.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

KIB, MIB, GIB = 2**10, 2**20, 2**30
SETTINGS_BYTES = 64 * KIB
"""`tmi.toml`; 0.3 kB."""
RECORD_BYTES = 4 * MIB
"""A record of one case, and a clinical schema; a record with a free-text report has 10 kB."""
CERTIFICATE_BYTES = 4 * MIB
"""A certificate, a key or certificates of authorities in PEM; all authorities of the web have 0.3 MB."""
YAML_BYTES = 512 * KIB
"""A mapping in YAML, whose parser reads 0.1 MB a second; one of 1,781 features has 200 kB."""
FEATURES_BYTES = 4 * MIB
"""`radiomics.csv`: one row of 1,781 features; 120 kB."""
COHORT_BYTES = 16 * MIB
"""`cohort.csv`; 200,000 cases have 8 MB."""
TABLE_BYTES = 64 * MIB
"""A spreadsheet of a cohort, uncompressed; a few megabytes."""
FEATURE_TABLE_BYTES = 256 * MIB
"""A table of the features of a cohort; 36 kB a case."""
DOCUMENT_BYTES = 16 * MIB
"""A document that this package writes: of a run, of a bundle; below 1 MB. Also a tokenizer and a vocabulary."""
JOURNAL_BYTES = 256 * MIB
"""A journal of finished cases; 0.3 to 2 kB a case."""
IMAGE_BYTES = 4 * GIB
"""A CT or a mask; the largest volume that is accepted has 3.2 GB in float64."""
WEIGHTS_BYTES = 4 * GIB
"""Weights of a network, uncompressed; a fold of the paper's network has 0.7 GB."""
TIMING_CACHE_BYTES = 256 * MIB
"""Timing cache of TensorRT; a few megabytes."""
OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


ACCESS_ERRORS = frozenset(
    {
        errno.EACCES, errno.EPERM, errno.ENOENT, errno.EIO, errno.ESTALE, errno.ELOOP, errno.EMFILE, errno.ENFILE,
        errno.ENAMETOOLONG, errno.ENOTDIR, errno.ETIMEDOUT, errno.ENODEV, errno.ENXIO, errno.EBUSY,
    }
)  # fmt: skip
"""Error numbers of files that cannot be opened or read, whatever they contain."""


class NotRegularFileError(OSError):
    """A path leads to a pipe, a socket or a device."""


class FileTooLargeError(OSError):
    """A file is larger than one of its kind can be."""


def is_access_error(error: BaseException | None) -> bool:
    """Return whether a file could not be opened or read, whatever it contains."""
    return isinstance(error, OSError) and error.errno in ACCESS_ERRORS


def regular_file(path: str, flags: int = OPEN_FLAGS) -> int:
    """Return a descriptor of a regular file, as `opener` of `open` and `io.FileIO`; no other file is waited for.

    Raises:
        NotRegularFileError: the file is a pipe, a socket or a device.
        OSError: it does not exist, is a folder, or cannot be opened.
    """
    descriptor = os.open(path, flags | OPEN_FLAGS)
    try:
        require_regular(os.fstat(descriptor), path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def require_regular(status: os.stat_result, path: str | Path) -> None:
    """Raise unless a status is that of a regular file.

    Raises:
        NotRegularFileError: it is that of a pipe, a socket or a device.
        IsADirectoryError: it is that of a folder.
    """
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise NotRegularFileError(errno.EINVAL, f"it is {kind}, not a regular file", str(path))


def open_regular(path: Path, *, max_bytes: int | None = None) -> io.BufferedReader:
    """Open a regular file for reading; with `max_bytes`, one of at most this size.

    Raises:
        OSError: it does not exist, cannot be opened, is no regular file (`NotRegularFileError`), or is too large
            (`FileTooLargeError`).
    """
    stream: io.BufferedReader = io.BufferedReader(io.FileIO(path, opener=regular_file))
    try:
        if max_bytes is not None and os.fstat(stream.fileno()).st_size > max_bytes:
            raise _too_large(path, max_bytes)
    except BaseException:
        stream.close()
        raise
    return stream


def require_bounded(path: Path, *, max_bytes: int) -> None:
    """Raise unless a path leads to a regular file of at most `max_bytes`; for libraries that open the path themselves.

    Raises:
        OSError: as in `open_regular`.
    """
    open_regular(path, max_bytes=max_bytes).close()


def read_bytes(path: Path, *, max_bytes: int) -> bytes:
    """Return the content of a regular file of at most `max_bytes`; memory is allocated after its size was checked.

    Raises:
        OSError: as in `open_regular`.
    """
    with open_regular(path, max_bytes=max_bytes) as stream:
        data = stream.read(max_bytes + 1)
    require_size(len(data), path, max_bytes=max_bytes)  # it may have grown meanwhile
    return data


def require_size(size: int, path: Path, *, max_bytes: int) -> None:
    """Raise unless a file of `size` bytes has at most `max_bytes`.

    Raises:
        FileTooLargeError: it is larger.
    """
    if size > max_bytes:
        raise _too_large(path, max_bytes)


def read_text(path: Path, *, max_bytes: int, encoding: str = "utf-8-sig") -> str:
    """Return the text of a regular file of at most `max_bytes`; line breaks are unchanged.

    Raises:
        OSError: as in `open_regular`.
        UnicodeDecodeError: it is not text in this encoding.
    """
    return read_bytes(path, max_bytes=max_bytes).decode(encoding)


def _too_large(path: Path, max_bytes: int) -> FileTooLargeError:
    size = f"{max_bytes // MIB} MiB" if max_bytes >= MIB else f"{max_bytes // KIB} KiB"
    return FileTooLargeError(errno.EFBIG, f"it is larger than {size}", str(path))
