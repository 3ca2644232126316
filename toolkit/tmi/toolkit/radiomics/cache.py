"""Cached extraction: the same voxels, mask, settings and package versions are extracted only once.

The key is a digest of contents; file names and dates are not part of it. A hit imports no
SimpleITK. An entry takes 14 kB, and the cache is limited to 64 MiB, about 4,700 masks.
`tmi.toolkit.storage.content_cache` documents its location and how to disable or delete it.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import TYPE_CHECKING

import numpy as np

from tmi.toolkit.radiomics.feature_names import FEATURE_NAMES
from tmi.toolkit.radiomics.settings import PYRADIOMICS_VERSION, SETTINGS_DIGEST
from tmi.toolkit.storage.content_cache import ContentCache
from tmi.toolkit.storage.hashing import sha256_json

if TYPE_CHECKING:
    from tmi.toolkit.imaging.volume import Volume
    from tmi.toolkit.radiomics.extractor import ExtractedFeatures

KIND = "radiomics"
"""Name of the cache's folder."""
MAX_BYTES = 64 * 2**20
"""Size limit of the cache."""
CACHE_VERSION = 1
"""Increase it with every change of this package that can change a value."""
PACKAGES = ("SimpleITK", "PyWavelets", "numpy")
"""Packages whose version can change a value."""


def package_versions() -> dict[str, str]:
    """Return the installed versions of `PACKAGES`, and the version of pyradiomics that defines the features.

    Packages that are not installed are left out.
    """
    versions = {"pyradiomics": PYRADIOMICS_VERSION}
    for name in PACKAGES:
        try:
            versions[name] = installed(name)
        except PackageNotFoundError:
            continue
    return versions


def cache_key(ct: Volume, mask: Volume) -> str:
    """Return the digest of everything that the values depend on.

    Args:
        ct: CT in Hounsfield units.
        mask: bool, on the CT's grid; the label is already selected.
    """
    ct_sha256 = hashlib.sha256(np.ascontiguousarray(ct.array_DHW).data).hexdigest()
    mask_sha256 = hashlib.sha256(np.packbits(mask.array_DHW.astype(np.bool_)).data).hexdigest()
    return sha256_json(
        {
            "road": CACHE_VERSION,  # renaming this key would invalidate all existing entries
            "ct": ct_sha256,
            "dtype": str(ct.array_DHW.dtype),
            "shape_DHW": list(ct.array_DHW.shape),
            "spacing_DHW_mm": list(ct.spacing_DHW_mm),
            "mask": mask_sha256,
            "settings": SETTINGS_DIGEST,
            "packages": package_versions(),
        }
    )


def extract_cached(ct: Volume, mask: Volume, *, jobs: int | None = None, use_cache: bool = True) -> ExtractedFeatures:
    """Return the cached features of a mask, or extract and cache them.

    Args:
        ct: CT in Hounsfield units.
        mask: bool, on the CT's grid.
        jobs: number of threads; None for all cores available to this process.
        use_cache: False neither reads nor fills the cache.

    Raises:
        UnavailableError: the features are not cached and SimpleITK or PyWavelets is not installed.
        InputRejectedError: `radiomics-mask` or `ct-not-hu`, as in `tmi.toolkit.radiomics.extractor.extract`.
    """
    from tmi.toolkit.radiomics.extractor import ExtractedFeatures, extract_with_note

    cache = ContentCache(KIND, max_bytes=MAX_BYTES) if use_cache else None
    if cache is None or not cache.enabled:
        return extract_with_note(ct, mask, jobs=jobs)
    key = cache_key(ct, mask)
    data = cache.get(key)
    if data is not None and len(data) == 8 * len(FEATURE_NAMES):
        return ExtractedFeatures(values_F=np.frombuffer(data, dtype="<f8").astype(np.float64))
    extracted = extract_with_note(ct, mask, jobs=jobs)
    if extracted.note is None:  # an entry has no place for the note, so the next hit would lose it
        cache.put(key, extracted.values_F.astype("<f8").tobytes())
    return extracted
