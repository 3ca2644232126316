"""Graphs as an engine has compiled them, kept in the user's cache and mapped into memory from there.

A file is the payload, then the SHA-256 of key and payload. The payload begins at the file's begin, so that an engine
may read aligned weights from the mapping without a copy; the mapping is private, so nothing is written back. The digest
is compared whenever a file is opened: a damaged, renamed or edited file is removed and its owner compiles anew, because
a flipped bit in a weight would change answers and no engine would notice.

How files come and go is `tmi.toolkit.storage.disk_cache`'s. Folder and files are their owner's alone, and ones that
belong to somebody else, or that others may write, are not read: an engine trusts what it imports.
"""

from __future__ import annotations

import mmap
import os
import stat
from dataclasses import dataclass

from tmi.toolkit.storage.disk_cache import DIGEST_BYTES, DiskCache, digest

KIND = "compiled"
"""The folder's name below the cache."""
SUFFIX = ".compiled"
"""Ending of a file."""
MAX_BYTES = 12 * 2**30
"""Bound of the folder: five folds of the full-size preset in two precisions."""


@dataclass(frozen=True, kw_only=True)
class MappedFile:
    """A file in memory; whoever imports from `payload` keeps this until it is done with it."""

    mapping: mmap.mmap
    """The whole file."""
    payload: memoryview
    """What was stored."""


class CompiledCache(DiskCache):
    """Compiled graphs by key.

    Args:
        max_bytes: bound of the folder; crossing it removes what was used longest ago.
    """

    def __init__(self, *, max_bytes: int = MAX_BYTES) -> None:
        super().__init__(KIND, suffix=SUFFIX, max_bytes=max_bytes)

    def open(self, key: str) -> MappedFile | None:
        """What was stored under a key, compared with its digest; None where there is nothing that is whole."""
        path = self.path(key)
        if path is None:
            return None
        try:
            if not _owned_by_user(path.parent.stat()):
                return None
            with path.open("rb") as stream:
                status = os.fstat(stream.fileno())
                if not _owned_by_user(status):
                    return None
                mapping = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) if status.st_size else None
        except OSError:
            return None
        if mapping is not None and len(mapping) > DIGEST_BYTES:
            payload = memoryview(mapping)[:-DIGEST_BYTES]
            if mapping[-DIGEST_BYTES:] == digest(key, payload):
                self.mark_used(path)
                return MappedFile(mapping=mapping, payload=payload)
        self.discard(path)
        return None

    def put(self, key: str, payload: memoryview) -> bool:
        """Store under a key.

        Returns:
            Whether it is stored; not where caching is off, the disk is full or the folder cannot be written.
        """
        return self.write(key, (payload, digest(key, payload)))


def _owned_by_user(status: os.stat_result) -> bool:
    """Whether a file or folder belongs to this user and no other may write it; always so where nobody can say."""
    if not hasattr(os, "geteuid"):
        return True
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
