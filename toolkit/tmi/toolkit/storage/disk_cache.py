"""Base class of the disk caches: a folder of files, addressed by a key and bounded in size.

Files are written to a temporary name and renamed, so processes may read and write concurrently, and a kill leaves the
old file, the new file or none. A digest binds each payload to its key. The subclass defines the file layout; it checks
the digest, and discards a damaged, edited or renamed file. Above the size limit the least recently used files are
removed.

The folders are `$TMI_CACHE/<kind>`, else the user's cache folder (`tmi.toolkit.storage.user_folders`); `TMI_CACHE=off`
disables all caches. The content is derived from patient data, and it is used in place of what it was computed from: it
is readable by its owner only, and a file that another user wrote or can write is ignored
(`tmi.toolkit.storage.private_files`). The folders may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tmi.toolkit.storage.private_files import PART, write_private
from tmi.toolkit.storage.user_folders import cache_root

STALE_PART_SECONDS = 3600.0
"""Age above which a partial file is considered a leftover of a killed process."""
DIGEST_BYTES = 32
"""Length of the result of `digest`."""


def digest(key: str, payload: bytes | memoryview) -> bytes:
    """Return the SHA-256 of key and payload, which detects a file that was renamed to the name of another key."""
    # The length prefix separates key and payload unambiguously.
    hasher = hashlib.sha256(len(key.encode()).to_bytes(8, "little") + key.encode())
    hasher.update(payload)
    return hasher.digest()


class DiskCache:
    """Files of one kind of cache.

    Args:
        kind: name of the folder, for example `radiomics`.
        suffix: suffix of its files.
        max_bytes: size limit; above it, the least recently used files are removed.
        shrink_to: fraction of the limit to which the folder is pruned; below 1, a full folder is not pruned on every
            write.
    """

    def __init__(self, kind: str, *, suffix: str, max_bytes: int, shrink_to: float = 1.0) -> None:
        root = cache_root()
        self.folder = None if root is None else root / kind
        self.max_bytes = max_bytes
        self._suffix, self._shrink_to = suffix, shrink_to

    @property
    def enabled(self) -> bool:
        """Whether caching is on."""
        return self.folder is not None

    def path(self, key: str) -> Path | None:
        """Return the path of a key's file, which may not exist; None if caching is off."""
        name = hashlib.sha256(key.encode()).hexdigest() + self._suffix
        return None if self.folder is None else self.folder / name

    @staticmethod
    def mark_used(path: Path) -> None:
        """Mark a file as most recently used, by its modification time."""
        with suppress(OSError):
            os.utime(path)

    @staticmethod
    def discard(path: Path) -> None:
        """Remove a damaged file, unless another process already has."""
        with suppress(OSError):
            path.unlink()

    def write(self, key: str, pieces: Iterable[bytes | memoryview]) -> bool:
        """Write the file of a key as the concatenation of `pieces`.

        Returns:
            Whether it was stored; False if caching is off, the disk is full, or the folder is not writable or belongs
            to another user.
        """
        path = self.path(key)
        if path is None:
            return False
        try:
            write_private(path, pieces)
        except OSError:
            return False
        self._prune(path.parent)
        return True

    def _prune(self, folder: Path) -> None:
        """Remove stale partial files, and the least recently used files above the size limit.

        Other processes may prune concurrently: a file that no longer exists is skipped.
        """
        now, entries = time.time(), []
        with suppress(OSError):
            for item in os.scandir(folder):
                with suppress(OSError):
                    status = item.stat()
                    if item.name.endswith(PART) and now - status.st_mtime > STALE_PART_SECONDS:
                        os.unlink(item.path)
                    elif item.name.endswith(self._suffix):
                        entries.append((status.st_mtime, status.st_size, item.path))
        total = sum(size for _, size, _ in entries)
        if total <= self.max_bytes:
            return
        for _, size, path in sorted(entries)[:-1]:  # the newest file stays, whatever its size
            if total <= self._shrink_to * self.max_bytes:
                break
            with suppress(OSError):
                os.unlink(path)
                total -= size
