"""A folder of files that are found again by what they were made from; what the caches of `tmi` have in common.

A file is written beside its place and renamed, so that several processes may read and write at once and a kill leaves
the old file, the new one or none. A digest binds each payload to its key: a file that is damaged, edited or under
another's name is noticed by its owner, removed, and made anew. What was used longest ago goes first when the folder
outgrows its bound. How payload and digest lie in a file is the owner's.

Folders lie in `$TMI_CACHE`, else `$XDG_CACHE_HOME/tmi`, else `~/.cache/tmi`, one a kind; `TMI_CACHE=off` turns all of
it off. They are derived from patient data, so each is its owner's alone. They may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

PART = ".part"
"""Ending of a file that is being written."""
STALE_PART_SECONDS = 3600.0
"""Age at which a half-written file is taken for what a killed process left."""
CACHE_OFF = "off"
"""Value of `TMI_CACHE` that turns every cache off."""
DIGEST_BYTES = 32
"""Length of `digest`."""


def cache_root() -> Path | None:
    """The folder of all kinds; None where caching is off or the user has no home."""
    asked = os.environ.get("TMI_CACHE", "").strip()
    if asked.lower() == CACHE_OFF:
        return None
    if asked:
        return Path(asked).expanduser()
    # the XDG specification has relative paths ignored
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if xdg.is_absolute():
        return xdg / "tmi"
    try:
        return Path.home() / ".cache" / "tmi"
    except RuntimeError:
        return None


def digest(key: str, payload: bytes | memoryview) -> bytes:
    """SHA-256 that binds a payload to its key, so that a file under another's name is noticed."""
    hasher = hashlib.sha256(len(key.encode()).to_bytes(8, "little") + key.encode())
    hasher.update(payload)
    return hasher.digest()


class DiskCache:
    """The files of one kind.

    Args:
        kind: name of the folder, for example `radiomics`.
        suffix: ending of its files.
        max_bytes: its bound; crossing it removes what was used longest ago.
        shrink_to: part of the bound that is left then; below 1, a full folder is not tidied at every file.
    """

    def __init__(self, kind: str, *, suffix: str, max_bytes: int, shrink_to: float = 1.0) -> None:
        root = cache_root()
        self.folder = None if root is None else root / kind
        self.max_bytes = max_bytes
        self._suffix, self._shrink_to = suffix, shrink_to

    @property
    def enabled(self) -> bool:
        """Whether there is a place for files."""
        return self.folder is not None

    def path(self, key: str) -> Path | None:
        """Where a key's file lies or would lie; None where caching is off."""
        name = hashlib.sha256(key.encode()).hexdigest() + self._suffix
        return None if self.folder is None else self.folder / name

    @staticmethod
    def mark_used(path: Path) -> None:
        """Let a file be the one that was used last."""
        with suppress(OSError):
            os.utime(path)

    @staticmethod
    def discard(path: Path) -> None:
        """Remove a file that is not whole; another process may have done so."""
        with suppress(OSError):
            path.unlink()

    def write(self, key: str, pieces: Iterable[bytes | memoryview]) -> bool:
        """Write a key's file, one piece after the other.

        Returns:
            Whether it is stored; not where caching is off, the disk is full or the folder cannot be written.
        """
        path = self.path(key)
        if path is None:
            return False
        part: Path | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, name = tempfile.mkstemp(dir=path.parent, suffix=PART)
            part = Path(name)
            with os.fdopen(handle, "wb") as stream:
                for piece in pieces:
                    stream.write(piece)
            os.replace(part, path)
        except OSError:
            if part is not None:
                self.discard(part)
            return False
        self._prune(path.parent)
        return True

    def _prune(self, folder: Path) -> None:
        """Remove forgotten parts, and the files used longest ago where the bound is crossed.

        Other processes may prune at the same time: a file that is gone already is passed over.
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
        for _, size, path in sorted(entries)[:-1]:  # never the newest, however large
            if total <= self._shrink_to * self.max_bytes:
                break
            with suppress(OSError):
                os.unlink(path)
                total -= size
