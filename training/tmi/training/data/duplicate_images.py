"""Finds cases that have the same CT under two ids. N cases, D H W voxels.

The prepared CTs are compared, after orientation, window and grid are applied, so a copy that was saved mirrored,
compressed or in another data type is still found. Two images are near duplicates if their mean absolute difference is
below a thousandth of the window's width (0.2 HU of 200), far below the noise between two scans of one patient.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from tmi.toolkit.storage.hashing import sha256_bytes

RELATIVE_TOLERANCE = 1e-3
"""Mean absolute difference of near duplicates, as a fraction of the window's width."""
SAMPLED_VOXELS = 4096
"""Approximate number of voxels of each image for the preselection of pairs."""


def find_duplicates(ct_N1DHW: Float[np.ndarray, "N 1 D H W"], *, span: float) -> Iterator[tuple[int, int, bool]]:
    """Yield pairs of duplicate rows, the lower row first, and whether they are bit-identical.

    Args:
        ct_N1DHW: prepared CTs.
        span: width of the intensity window after scaling.
    """
    # a regular subsample preselects pairs; the full images decide
    step = max(1, int(np.ceil((np.prod(ct_N1DHW.shape[2:]) / SAMPLED_VOXELS) ** (1 / 3))))
    sampled = np.stack([np.asarray(ct[0, ::step, ::step, ::step]).ravel() for ct in ct_N1DHW])
    digests = [sha256_bytes(np.ascontiguousarray(ct).data.cast("B")) for ct in ct_N1DHW]
    for a in range(len(sampled)):
        differences = np.abs(sampled[a + 1 :] - sampled[a]).mean(axis=1) / span
        for b in a + 1 + np.flatnonzero(differences < 5 * RELATIVE_TOLERANCE):
            exact = digests[a] == digests[b]
            if exact or float(np.abs(ct_N1DHW[a] - ct_N1DHW[b]).mean()) / span < RELATIVE_TOLERANCE:
                yield a, int(b), exact
