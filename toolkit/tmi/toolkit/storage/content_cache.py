"""Content-addressed cache of byte payloads on top of `tmi.toolkit.storage.disk_cache`.

An entry is one file: magic bytes, SHA-256 of key and payload, payload. An entry with a wrong digest (a damaged disk, a
renamed or edited file) is removed and reported as a miss, so that the caller recomputes the payload.
"""

from __future__ import annotations

import os

from tmi.toolkit.storage.disk_cache import DIGEST_BYTES, DiskCache, digest
from tmi.toolkit.storage.private_files import open_private

MAGIC = b"tmi-entry-1\n"
"""First bytes of an entry; they change with the file format."""
SUFFIX = ".entry"
"""Suffix of the file name of an entry."""
MAX_ENTRY_BYTES = 2**30
"""Largest entry that is read; the largest volume of a network has 0.5 GiB."""
DEFAULT_MAX_BYTES = 256 * 2**20
"""Default size limit of a cache folder."""


class ContentCache(DiskCache):
    """Cache of one kind of payload.

    Args:
        kind: name of the cache folder, for example `radiomics`.
        max_bytes: size limit; above it, least recently used entries are removed down to nine tenths of the limit.
    """

    def __init__(self, kind: str, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        super().__init__(kind, suffix=SUFFIX, max_bytes=max_bytes, shrink_to=0.9)

    def get(self, key: str) -> bytes | None:
        """Return the payload of a key; None if the entry is missing, damaged, or may be another user's."""
        path = self.path(key)
        if path is None:
            return None
        try:
            with open_private(path) as stream:
                if os.fstat(stream.fileno()).st_size > MAX_ENTRY_BYTES:
                    return None
                magic, stored = stream.read(len(MAGIC)), stream.read(DIGEST_BYTES)
                data = stream.read()
        except OSError:
            return None
        if magic != MAGIC or stored != digest(key, data):
            self.discard(path)
            return None
        self.mark_used(path)
        return data

    def put(self, key: str, data: bytes) -> bool:
        """Store a payload.

        Returns:
            Whether it was stored; False if caching is off, the disk is full or the folder is not writable.
        """
        return self.write(key, (MAGIC, digest(key, data), data))
