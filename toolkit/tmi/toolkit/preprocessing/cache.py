"""Disk cache of a case's preprocessed images: the network's CT, the warnings of the image checks, extracted radiomics.

The key of an entry is a digest of all its inputs: the bytes of `ct.nii.gz` and `liver.nii.gz`, the mask's label, the CT
settings, whether radiomics were extracted, the code (`CODE_PARTS`), and the versions of numpy, nibabel and, if used,
SimpleITK and PyWavelets. A changed byte, setting or version is therefore a cache miss.
`tmi.toolkit.storage.content_cache` handles damaged entries, interrupted writes and concurrent processes. A rejected
case is not stored.

The clinical record and `radiomics.csv` are small and are read again on every call. Entries and their names contain
voxels and features derived from them, but no text, value or id of a patient.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
from jaxtyping import Float

from tmi.toolkit.cases.case import Case
from tmi.toolkit.config.schema import N_RADIOMICS, CtConfig
from tmi.toolkit.errors import UsageError
from tmi.toolkit.issues.issue import Issue
from tmi.toolkit.storage.bounded_files import IMAGE_BYTES
from tmi.toolkit.storage.content_cache import ContentCache
from tmi.toolkit.storage.documents import DocumentError, parse_json
from tmi.toolkit.storage.hashing import sha256_file, sha256_json
from tmi.toolkit.storage.serialization import from_json, to_json

KIND = "prepared"
"""Folder of these entries in the cache."""
FORMAT_VERSION = 3
"""Format of an entry; part of the key."""
MAX_BYTES = 16 * 2**30
"""Size limit of the folder; the paper's 184 cases at full size take 12.3 GB."""
KEEP_FREE_BYTES = 2 * 2**30
"""Free disk space that must remain after storing an entry; otherwise the entry is not stored."""
HEADER_BYTES = 8
"""Size of the field that holds the length of an entry's header."""
CODE_PARTS = (
    "errors.py",
    "issues",
    "modality.py",
    "model_registry.py",
    "compute",
    "storage",
    "config",
    "cases",
    "clinical",
    "imaging",
    "radiomics",
    "qc",
    "preprocessing",
)
"""Modules and sub-packages of `tmi.toolkit` that preprocessing imports; an edit of any of them changes the key."""


@dataclass(frozen=True, kw_only=True)
class PreparedImages:
    """Preprocessed CT of a case, and what was derived from CT and mask."""

    ct_1DHW: Float[np.ndarray, "1 D H W"]
    """float32, windowed, scaled and resampled."""
    warnings: tuple[Issue, ...]
    """Warnings of the image checks; without the case id, which no entry holds."""
    radiomics_F: Float[np.ndarray, "1781"] | None = None
    """float64, NaN where missing; None if the case has its own table."""
    geometry_G: Float[np.ndarray, "6"] | None = None
    """Voxels of the CT's file along D, H, W and their sizes in mm; None without a CT."""


class PreparedCache:
    """Cache of `PreparedImages` in the user's cache folder.

    Args:
        max_bytes: size limit of the folder.
    """

    def __init__(self, *, max_bytes: int = MAX_BYTES) -> None:
        self._entries = ContentCache(KIND, max_bytes=max_bytes)
        self.hits = 0
        """Number of cases read from the cache."""
        self.stored = 0
        """Number of cases prepared and stored."""
        self.not_stored = 0
        """Number of cases prepared that could not be stored."""

    @property
    def folder(self) -> Path | None:
        """Folder of the entries; None if caching is off."""
        return self._entries.folder

    def summary(self) -> str:
        """Return one line with the counts, for printing."""
        if self.folder is None:
            return "cache of prepared cases: off"
        not_stored = (
            f"; {self.not_stored} not stored: the folder cannot be written, or the disk is nearly full"
            if self.not_stored
            else ""
        )
        return f"cache of prepared cases: {self.hits} found, {self.stored} stored in {self.folder}{not_stored}"

    def get_or_prepare(
        self, case: Case, config: CtConfig, *, extract: bool, prepare: Callable[[], PreparedImages]
    ) -> PreparedImages:
        """Return the entry of a case; on a miss, call `prepare` and store its result.

        Args:
            case: the case; its CT and mask (if any) are read completely for their digests.
            config: settings of the CT.
            extract: whether `prepare` extracts radiomics.
            prepare: reads, checks and prepares the images; its exceptions are passed on and not stored.
        """
        before = _file_states(case)
        if not self._entries.enabled or before[0] is None:
            return prepare()
        try:
            key = prepared_key(case, config, extract=extract)
        except OSError:
            return prepare()  # raises a typed error for the unreadable file
        data = self._entries.get(key)
        cached = None if data is None else _decode(data, config, extract=extract)
        if cached is not None:
            self.hits += 1
            return cached
        prepared = prepare()
        # a file that changed between hashing and reading would be stored under the key of its old content
        if _file_states(case) == before:
            self._store(key, _encode(prepared))
        return prepared

    def _store(self, key: str, data: bytes) -> None:
        folder = self._entries.folder
        assert folder is not None  # caching is enabled
        existing = next(p for p in (folder, *folder.parents) if p.exists())
        has_space = shutil.disk_usage(existing).free - len(data) > KEEP_FREE_BYTES
        stored = has_space and self._entries.put(key, data)
        self.stored += stored
        self.not_stored += not stored


def prepared_key(case: Case, config: CtConfig, *, extract: bool) -> str:
    """Return the digest of everything that an entry depends on.

    Raises:
        OSError: a file cannot be read.
    """
    return sha256_json(
        {
            "form": FORMAT_VERSION,
            "ct": sha256_file(case.ct, max_bytes=IMAGE_BYTES),
            "mask": sha256_file(case.mask, max_bytes=IMAGE_BYTES) if case.mask.exists() else None,
            "mask_label": case.mask_label,
            "config": to_json(config),
            "extract": extract,
            "code": code_digest(),
            "packages": _packages("numpy", "nibabel", *(("SimpleITK", "PyWavelets") if extract else ())),
        }
    )


@cache
def code_digest() -> str:
    """Return the digest of the code and data files in `CODE_PARTS`; it replaces a manually raised version number."""
    return tree_digest(files("tmi.toolkit"), CODE_PARTS)


def tree_digest(root: Traversable, parts: Iterable[str]) -> str:
    """Return the digest of the Python modules and JSON files of some parts of a source tree.

    Args:
        root: top folder of the tree.
        parts: files and folders directly below `root`; folders are searched recursively.
    """
    sources: dict[str, str] = {}
    for part in parts:
        sources.update(_sources(root / part, part))
    return sha256_json(dict(sorted(sources.items())))


def _sources(entry: Traversable, path: str) -> Iterator[tuple[str, str]]:
    """Yield path and text of each source file at or below `entry`."""
    if entry.is_dir():
        for child in entry.iterdir():
            yield from _sources(child, f"{path}/{child.name}")
    elif path.endswith((".py", ".json")):
        yield path, entry.read_text(encoding="utf-8")


def _packages(*names: str) -> dict[str, str | None]:
    """Return the installed version of each distribution; None if it is not installed."""
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def _file_states(case: Case) -> tuple[tuple[int, int, int] | None, ...]:
    """Return size, modification time and inode of CT and mask; None for a missing file."""
    states: list[tuple[int, int, int] | None] = []
    for path in (case.ct, case.mask):
        try:
            status = path.stat()
        except OSError:
            states.append(None)
        else:
            states.append((status.st_size, status.st_mtime_ns, status.st_ino))
    return tuple(states)


def _encode(images: PreparedImages) -> bytes:
    """Serialise as header length, JSON header, voxels (little-endian float32), features (little-endian float64)."""
    warnings = [replace(issue, case_id=None).to_dict() for issue in images.warnings]
    geometry = None if images.geometry_G is None else images.geometry_G.tolist()
    header = json.dumps({"shape": images.ct_1DHW.shape, "warnings": warnings, "geometry": geometry}).encode()
    features = b"" if images.radiomics_F is None else images.radiomics_F.astype("<f8").tobytes()
    return b"".join(
        (len(header).to_bytes(HEADER_BYTES, "little"), header, images.ct_1DHW.astype("<f4").tobytes(), features)
    )


def _decode(data: bytes, config: CtConfig, *, extract: bool) -> PreparedImages | None:
    """Parse an entry; return None if its format or size does not match."""
    start = HEADER_BYTES + int.from_bytes(data[:HEADER_BYTES], "little")
    shape = (1, *config.shape_DHW)
    count, features = math.prod(shape), N_RADIOMICS if extract else 0
    if len(data) != start + 4 * count + 8 * features:
        return None
    try:
        header = parse_json(data[HEADER_BYTES:start])
        if tuple(header["shape"]) != shape:
            return None
        warnings = tuple(from_json(Issue, warning) for warning in header["warnings"])
        geometry = None if header["geometry"] is None else np.asarray(header["geometry"], np.float64)
    except (DocumentError, KeyError, TypeError, ValueError, UsageError):
        return None
    ct = np.frombuffer(data, "<f4", count=count, offset=start).astype(np.float32).reshape(shape)
    radiomics = np.frombuffer(data, "<f8", offset=start + 4 * count).astype(np.float64) if extract else None
    return PreparedImages(ct_1DHW=ct, warnings=warnings, radiomics_F=radiomics, geometry_G=geometry)
