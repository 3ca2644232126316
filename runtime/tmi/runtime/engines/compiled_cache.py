"""Cache of compiled graphs in the user's cache folder, memory-mapped on reading.

A file is the payload, followed by the SHA-256 of key and payload. The payload starts at offset 0, so that an engine can
read aligned weights from the mapping without a copy. The mapping is private: nothing is written back. The digest is
checked whenever a file is opened. A damaged, renamed or edited file is removed and the graph is compiled again: a
flipped bit in a weight would change outputs without an error.

`tmi.toolkit.storage.disk_cache` writes and evicts the files. Engines trust what they import: files of other users are
ignored (`tmi.toolkit.storage.private_files`).
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass

from tmi.toolkit.storage.disk_cache import DIGEST_BYTES, DiskCache, digest
from tmi.toolkit.storage.private_files import open_private

KIND = "compiled"
"""Name of the folder below the cache root."""
SUFFIX = ".compiled"
"""Suffix of the files."""
MAX_BYTES = 12 * 2**30
"""Size limit of the folder: five folds of the full-size preset in two precisions."""


@dataclass(frozen=True, kw_only=True)
class MappedFile:
    """A memory-mapped file; keep it as long as anything imported from `payload` is in use."""

    mapping: mmap.mmap
    """The complete file."""
    payload: memoryview
    """The stored bytes, without the digest."""


class CompiledCache(DiskCache):
    """Compiled graphs by key.

    Args:
        max_bytes: size limit of the folder. Above it the least recently used files are removed.
    """

    def __init__(self, *, max_bytes: int = MAX_BYTES) -> None:
        super().__init__(KIND, suffix=SUFFIX, max_bytes=max_bytes)

    def open(self, key: str) -> MappedFile | None:
        """Open the payload of a key after checking its digest; None if there is no valid file."""
        path = self.path(key)
        if path is None:
            return None
        try:
            with open_private(path) as stream:
                size = os.fstat(stream.fileno()).st_size
                mapping = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) if size else None
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
        """Store a payload.

        Returns:
            Whether it was stored; False if caching is off, the disk is full or the folder cannot be written.
        """
        return self.write(key, (payload, digest(key, payload)))
