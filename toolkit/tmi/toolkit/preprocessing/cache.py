"""A cache of what is made from a case's images: the network's CT, the warnings of its checks, extracted radiomics.

An entry is found by what it was made from: the bytes of `ct.nii.gz` and `liver.nii.gz`, the mask's label, the CT's
settings, whether radiomics were extracted, and the code that did it (every module of `tmi.toolkit` and of its
sub-packages, numpy, nibabel, and pyradiomics where it took part). So a changed byte, setting or version is a miss,
never a stale answer. Damage, kills and other processes are `tmi.toolkit.storage.content_cache`'s matter. A refused case
leaves no entry and is refused anew.

The clinical record and `radiomics.csv` are small and are read anew each time: no text, value or id of a patient is in
an entry or in its name, only voxels and figures derived from them.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
from jaxtyping import Float

from tmi.toolkit.cases.case import Case
from tmi.toolkit.config.schema import N_RADIOMICS, CtConfig
from tmi.toolkit.storage.content_cache import ContentCache
from tmi.toolkit.storage.hashing import sha256_file, sha256_json
from tmi.toolkit.storage.serialization import to_json

KIND = "prepared"
"""Folder of these entries in the cache."""
FORMAT_VERSION = 1
"""Form of an entry; another form is another key."""
MAX_BYTES = 16 * 2**30
"""Bound of the folder: the paper's 184 cases at full size take 12.3 GB."""
KEEP_FREE_BYTES = 2 * 2**30
"""Nothing is stored on a disk with less room than this besides the entry."""
HEADER_BYTES = 8
"""Bytes that tell the length of an entry's header."""


@dataclass(frozen=True, kw_only=True)
class PreparedImages:
    """What a case's CT and mask come to."""

    ct_1DHW: Float[np.ndarray, "1 D H W"]
    """float32, windowed, scaled and resampled."""
    warnings: tuple[str, ...]
    """Warnings of the checks."""
    radiomics_F: Float[np.ndarray, "1781"] | None = None
    """float64, NaN where missing; None where the case has its own table."""


class PreparedCache:
    """Entries in the user's cache folder.

    Args:
        max_bytes: bound of their folder.
    """

    def __init__(self, *, max_bytes: int = MAX_BYTES) -> None:
        self._entries = ContentCache(KIND, max_bytes=max_bytes)
        self.hits = 0
        """Cases that were found."""
        self.stored = 0
        """Cases that were made and stored."""
        self.not_stored = 0
        """Cases that were made and could not be stored."""

    @property
    def folder(self) -> Path | None:
        """Where the entries lie; None where caching is off."""
        return self._entries.folder

    def summary(self) -> str:
        """One line on what it did, for people."""
        if self.folder is None:
            return "cache of prepared cases: off"
        lost = (
            f"; {self.not_stored} not stored: it cannot be written, or the disk is nearly full"
            if self.not_stored
            else ""
        )
        return f"cache of prepared cases: {self.hits} found, {self.stored} stored in {self.folder}{lost}"

    def get_or_prepare(
        self, case: Case, config: CtConfig, *, extract: bool, make: Callable[[], PreparedImages]
    ) -> PreparedImages:
        """The entry of a case, or what `make` makes, which is then stored.

        Args:
            case: its CT and, where there is one, its mask are read through for their digests.
            config: the CT's settings.
            extract: whether `make` extracts radiomics.
            make: reads, checks and prepares the images; what it raises is not stored.
        """
        before = _file_states(case)
        if not self._entries.enabled or before[0] is None:
            return make()
        try:
            key = prepared_key(case, config, extract=extract)
        except OSError:
            return make()  # it tells in its own words what cannot be read
        data = self._entries.get(key)
        found = None if data is None else _decode(data, config, extract=extract)
        if found is not None:
            self.hits += 1
            return found
        made = make()
        # files that changed while they were read may not be what was hashed
        if _file_states(case) == before:
            self._store(key, _encode(made))
        return made

    def _store(self, key: str, data: bytes) -> None:
        folder = self._entries.folder
        assert folder is not None  # the entries are enabled
        there = next(p for p in (folder, *folder.parents) if p.exists())
        room = shutil.disk_usage(there).free - len(data) > KEEP_FREE_BYTES
        done = room and self._entries.put(key, data)
        self.stored += done
        self.not_stored += not done


def prepared_key(case: Case, config: CtConfig, *, extract: bool) -> str:
    """Digest of all that an entry depends on.

    Raises:
        OSError: a file cannot be read.
    """
    return sha256_json(
        {
            "form": FORMAT_VERSION,
            "ct": sha256_file(case.ct),
            "mask": sha256_file(case.mask) if case.mask.is_file() else None,
            "mask_label": case.mask_label,
            "config": to_json(config),
            "extract": extract,
            "code": code_digest(),
            "packages": _packages("numpy", "nibabel", *(("pyradiomics", "SimpleITK", "PyWavelets") if extract else ())),
        }
    )


@cache
def code_digest() -> str:
    """Digest of the toolkit's modules and data: a version number that nobody can forget to raise."""
    return tree_digest(files("tmi.toolkit"))


def tree_digest(folder: Traversable) -> str:
    """Digest of every Python module and JSON file below a folder, in its sub-packages too."""
    return sha256_json(dict(sorted(_sources(folder, ""))))


def _sources(folder: Traversable, prefix: str) -> Iterator[tuple[str, str]]:
    """Path relative to the top folder, and text, of each source file."""
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _sources(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith((".py", ".json")):
            yield prefix + entry.name, entry.read_text(encoding="utf-8")


def _packages(*names: str) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _file_states(case: Case) -> tuple[tuple[int, int, int] | None, ...]:
    """Size, time of change and inode of CT and mask; None where there is none."""
    found: list[tuple[int, int, int] | None] = []
    for path in (case.ct, case.mask):
        try:
            status = path.stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_size, status.st_mtime_ns, status.st_ino))
    return tuple(found)


def _encode(made: PreparedImages) -> bytes:
    """Length of the header, header, voxels as little-endian float32, features as little-endian float64."""
    header = json.dumps({"shape": made.ct_1DHW.shape, "warnings": made.warnings}).encode()
    features = b"" if made.radiomics_F is None else made.radiomics_F.astype("<f8").tobytes()
    return b"".join(
        (len(header).to_bytes(HEADER_BYTES, "little"), header, made.ct_1DHW.astype("<f4").tobytes(), features)
    )


def _decode(data: bytes, config: CtConfig, *, extract: bool) -> PreparedImages | None:
    """The entry; None where it is not of this form."""
    start = HEADER_BYTES + int.from_bytes(data[:HEADER_BYTES], "little")
    shape = (1, *config.shape_DHW)
    count, features = math.prod(shape), N_RADIOMICS if extract else 0
    if len(data) != start + 4 * count + 8 * features:
        return None
    header = json.loads(data[HEADER_BYTES:start])
    if tuple(header["shape"]) != shape:
        return None
    ct = np.frombuffer(data, "<f4", count=count, offset=start).astype(np.float32).reshape(shape)
    radiomics = np.frombuffer(data, "<f8", offset=start + 4 * count).astype(np.float64) if extract else None
    return PreparedImages(ct_1DHW=ct, warnings=tuple(header["warnings"]), radiomics_F=radiomics)
