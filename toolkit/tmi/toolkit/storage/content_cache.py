"""Results that are found again by what they were made from (`tmi.toolkit.storage.disk_cache`), read whole.

An entry is a file: a magic word, the SHA-256 of key and payload, the payload. An entry whose digest does not fit (a
damaged disk, a renamed or edited file) is removed and reported as absent: its owner makes it anew.
"""

from __future__ import annotations

from tmi.toolkit.storage.disk_cache import DIGEST_BYTES, DiskCache, digest

MAGIC = b"tmi-entry-1\n"
"""First bytes of an entry; another form of entry gets another word."""
SUFFIX = ".entry"
"""Ending of an entry's file name."""
DEFAULT_MAX_BYTES = 256 * 2**20
"""Bound of a kind that names none."""


class ContentCache(DiskCache):
    """Entries of one kind.

    Args:
        kind: name of the kind's folder, for example `radiomics`.
        max_bytes: bound of the kind's folder; crossing it removes what was used longest ago, down to nine tenths.
    """

    def __init__(self, kind: str, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        super().__init__(kind, suffix=SUFFIX, max_bytes=max_bytes, shrink_to=0.9)

    def get(self, key: str) -> bytes | None:
        """The payload that was stored under a key; None where there is none that is whole."""
        path = self.path(key)
        if path is None:
            return None
        try:
            with path.open("rb") as stream:
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
            Whether it is stored; not where caching is off, the disk is full or the folder cannot be written.
        """
        return self.write(key, (MAGIC, digest(key, data), data))
