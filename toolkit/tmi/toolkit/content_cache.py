"""A folder of results that are found again by what they were made from.

An entry is a file: a magic word, the SHA-256 of key and payload, the payload. It is written beside its place and
renamed, so that several processes may read and write at once and a kill leaves the old entry, the new one or none. An
entry whose digest does not fit (a damaged disk, a renamed or edited file) is removed and reported as absent: its owner
makes it anew. What was used longest ago goes first when a kind outgrows its bound.

Entries lie in `$TMI_CACHE`, else `$XDG_CACHE_HOME/tmi`, else `~/.cache/tmi`, one folder a kind; `TMI_CACHE=off` turns
all of it off. They are derived from patient data, so the folder is its owner's alone. It may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

MAGIC = b"tmi-entry-1\n"
"""First bytes of an entry; another form of entry gets another word."""
SUFFIX = ".entry"
"""Ending of an entry's file name."""
PART = ".part"
"""Ending of an entry that is being written."""
FORGOTTEN_SECONDS = 3600.0
"""Age at which a half-written entry is taken for what a killed process left."""
DEFAULT_MAX_BYTES = 256 * 2**20
"""Bound of a kind that names none."""
OFF = "off"
"""Value of `TMI_CACHE` that turns every cache off."""


def cache_root() -> Path | None:
    """The folder of all kinds; None where caching is off or the user has no home."""
    asked = os.environ.get("TMI_CACHE", "").strip()
    if asked.lower() == OFF:
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


class ContentCache:
    """Entries of one kind.

    Args:
        kind: name of the kind's folder, for example `radiomics`.
        max_bytes: bound of the kind's folder; crossing it removes what was used longest ago, down to nine tenths.
    """

    def __init__(self, kind: str, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        root = cache_root()
        self.folder = None if root is None else root / kind
        self.max_bytes = max_bytes

    @property
    def enabled(self) -> bool:
        """Whether there is a place for entries."""
        return self.folder is not None

    def get(self, key: str) -> bytes | None:
        """The payload that was stored under a key; None where there is none that is whole."""
        if self.folder is None:
            return None
        path = self._path(self.folder, key)
        try:
            with path.open("rb") as stream:
                magic, digest = stream.read(len(MAGIC)), stream.read(32)
                data = stream.read()
        except OSError:
            return None
        if magic != MAGIC or digest != _digest(key, data):
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):
            os.utime(path)  # used now
        return data

    def put(self, key: str, data: bytes) -> bool:
        """Store a payload.

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
                stream.write(MAGIC + _digest(key, data))
                stream.write(data)
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
        """Remove forgotten parts, and the entries used longest ago where the bound is crossed.

        Other processes may prune at the same time: a file that is gone already is passed over.
        """
        now, entries = time.time(), []
        with suppress(OSError):
            for item in os.scandir(folder):
                with suppress(OSError):
                    status = item.stat()
                    if item.name.endswith(PART) and now - status.st_mtime > FORGOTTEN_SECONDS:
                        os.unlink(item.path)
                    elif item.name.endswith(SUFFIX):
                        entries.append((status.st_mtime, status.st_size, item.path))
        total = sum(size for _, size, _ in entries)
        if total <= self.max_bytes:
            return
        for _, size, path in sorted(entries)[:-1]:  # never the newest, however large
            if total <= 0.9 * self.max_bytes:
                break
            with suppress(OSError):
                os.unlink(path)
                total -= size


def _digest(key: str, data: bytes) -> bytes:
    """Binds a payload to its key, so that an entry under another's name is noticed."""
    hasher = hashlib.sha256(len(key.encode()).to_bytes(8, "little") + key.encode())
    hasher.update(data)
    return hasher.digest()
