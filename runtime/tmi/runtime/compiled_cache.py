"""Graphs as an engine has compiled them, kept in the user's cache and mapped into memory from there.

A file is the payload, then the SHA-256 of key and payload. The payload begins at the file's begin, so that an engine
may read aligned weights from the mapping without a copy; the mapping is private, so nothing is written back. The digest
is compared whenever a file is opened: a damaged, renamed or edited file is removed and its owner compiles anew, because
a flipped bit in a weight would change answers and no engine would notice.

A file is written beside its place and renamed. Folder and files are their owner's alone, and ones that belong to
somebody else, or that others may write, are not read: an engine trusts what it imports. What was used longest ago goes
first when the bound is crossed. `TMI_CACHE=off` turns this off like every other cache.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tmi.toolkit.content_cache import cache_root

KIND = "compiled"
"""The folder's name below the cache."""
SUFFIX, PART = ".compiled", ".part"
"""Endings of a whole file, and of one that is being written."""
DIGEST_BYTES = 32
MAX_BYTES = 12 * 2**30
"""Bound of the folder: five folds of the full-size preset in two precisions."""


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """A file in memory; whoever imports from `payload` keeps this until it is done with it."""

    mapping: mmap.mmap
    """The whole file."""
    payload: memoryview
    """What was stored."""


class CompiledCache:
    """Compiled graphs by key."""

    def __init__(self, *, max_bytes: int = MAX_BYTES) -> None:
        root = cache_root()
        self.folder = None if root is None else root / KIND
        self.max_bytes = max_bytes

    @property
    def enabled(self) -> bool:
        """Whether there is a place for files."""
        return self.folder is not None

    def open(self, key: str) -> Mapped | None:
        """What was stored under a key, compared with its digest; None where there is nothing that is whole."""
        if self.folder is None:
            return None
        path = self._path(self.folder, key)
        try:
            if not _only_ours(self.folder.stat()):
                return None
            with path.open("rb") as stream:
                status = os.fstat(stream.fileno())
                if not _only_ours(status):
                    return None
                mapping = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) if status.st_size else None
        except OSError:
            return None
        if mapping is not None and len(mapping) > DIGEST_BYTES:
            payload = memoryview(mapping)[:-DIGEST_BYTES]
            if mapping[-DIGEST_BYTES:] == _digest(key, payload):
                with suppress(OSError):
                    os.utime(path)  # used now
                return Mapped(mapping=mapping, payload=payload)
        with suppress(OSError):
            path.unlink()
        return None

    def put(self, key: str, payload: memoryview) -> bool:
        """Store under a key.

        Returns:
            Whether it is stored; not where caching is off, the disk is full or the folder cannot be written.
        """
        if self.folder is None:
            return False
        part: Path | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, name = tempfile.mkstemp(dir=self.folder, suffix=PART)
            part = Path(name)
            with os.fdopen(handle, "wb") as stream:
                stream.write(payload)
                stream.write(_digest(key, payload))
            os.replace(part, self._path(self.folder, key))
        except OSError:
            if part is not None:
                with suppress(OSError):
                    part.unlink()
            return False
        self._prune(self.folder)
        return True

    @staticmethod
    def _path(folder: Path, key: str) -> Path:
        return folder / (hashlib.sha256(key.encode()).hexdigest() + SUFFIX)

    def _prune(self, folder: Path) -> None:
        """Remove what was used longest ago, parts of killed processes among it; never the newest file."""
        entries = []
        with suppress(OSError):
            for item in os.scandir(folder):
                with suppress(OSError):
                    status = item.stat()
                    entries.append((status.st_mtime, status.st_size, item.path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries)[:-1]:
            if total <= self.max_bytes:
                break
            with suppress(OSError):
                os.unlink(path)
                total -= size


def _only_ours(status: os.stat_result) -> bool:
    """Whether a file or folder belongs to this user and no other may write it; always so where nobody can say."""
    if not hasattr(os, "geteuid"):
        return True
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _digest(key: str, payload: memoryview) -> bytes:
    """Binds a payload to its key, so that a file under another's name is noticed."""
    hasher = hashlib.sha256(len(key.encode()).to_bytes(8, "little") + key.encode())
    hasher.update(payload)
    return hasher.digest()
