"""Extraction that remembers: the same voxels, mask, settings and packages are never worked out twice.

The key is made of contents, not of names or dates. A hit needs neither pyradiomics nor SimpleITK to be imported. An
entry is 14 kB; the kind is bounded at 64 MiB, some 4,700 masks. `tmi.toolkit.storage.content_cache` says where it lies,
how it is turned off and that it may be deleted at any time.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import TYPE_CHECKING

import numpy as np

from tmi.toolkit.radiomics.feature_names import FEATURE_NAMES
from tmi.toolkit.radiomics.settings import SETTINGS_DIGEST
from tmi.toolkit.storage.content_cache import ContentCache
from tmi.toolkit.storage.hashing import sha256_json

if TYPE_CHECKING:
    from tmi.toolkit.imaging.volume import Volume
    from tmi.toolkit.radiomics.extractor import ExtractedFeatures

KIND = "radiomics"
MAX_BYTES = 64 * 2**20
CACHE_VERSION = 1
"""Raised whenever a change of our own code could change a value."""
PACKAGES = ("pyradiomics", "SimpleITK", "PyWavelets", "numpy")
"""What the values depend on."""


def package_versions() -> dict[str, str]:
    """Installed versions of what the values depend on; one that is not installed is left out."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = installed(name)
        except PackageNotFoundError:
            continue
    return versions


def cache_key(ct: Volume, mask: Volume) -> str:
    """Digest of everything that the values depend on.

    Args:
        ct: Hounsfield units.
        mask: bool, on the CT's grid; its label has been applied.
    """
    voxels = hashlib.sha256(np.ascontiguousarray(ct.array_DHW).data).hexdigest()
    inside = hashlib.sha256(np.packbits(mask.array_DHW.astype(np.bool_)).data).hexdigest()
    return sha256_json(
        {
            "road": CACHE_VERSION,
            "ct": voxels,
            "dtype": str(ct.array_DHW.dtype),
            "shape_DHW": list(ct.array_DHW.shape),
            "spacing_DHW_mm": list(ct.spacing_DHW_mm),
            "mask": inside,
            "settings": SETTINGS_DIGEST,
            "packages": package_versions(),
        }
    )


def extract_cached(ct: Volume, mask: Volume, *, jobs: int | None = None, use_cache: bool = True) -> ExtractedFeatures:
    """As `tmi.toolkit.radiomics.extractor.extract_with_note`, from the cache where it is there.

    Args:
        ct: Hounsfield units.
        mask: bool, on the CT's grid.
        jobs: threads; None for every core this process may use.
        use_cache: False neither reads nor fills the cache.

    Raises:
        UnavailableError: nothing is remembered and pyradiomics is not installed.
        InputRejectedError: the mask is too small, or the CT is empty.
    """
    from tmi.toolkit.radiomics.extractor import (  # imports nothing heavy before it extracts
        ExtractedFeatures,
        extract_with_note,
    )

    cache = ContentCache(KIND, max_bytes=MAX_BYTES) if use_cache else None
    if cache is None or not cache.enabled:
        return extract_with_note(ct, mask, jobs=jobs)
    key = cache_key(ct, mask)
    data = cache.get(key)
    if data is not None and len(data) == 8 * len(FEATURE_NAMES):
        return ExtractedFeatures(values_F=np.frombuffer(data, dtype="<f8").astype(np.float64))
    extracted = extract_with_note(ct, mask, jobs=jobs)
    if extracted.note is None:  # what a user should know of an extraction would be lost with the next hit
        cache.put(key, extracted.values_F.astype("<f8").tobytes())
    return extracted
