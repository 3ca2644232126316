"""Which cases have the same CT under two ids. N cases, D H W voxels.

Compared is what the network sees: canonical orientation, window and grid already applied, so that a copy that was saved
mirrored, compressed or in another type is still found. Two images are nearly the same where they differ by less than a
thousandth of the window's width on average (0.2 HU of 200), far below the noise of two scans of one patient.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from tmi.toolkit.storage.hashing import sha256_bytes

RELATIVE_TOLERANCE = 1e-3
"""Mean absolute difference, as a part of the window's width, below which two images are nearly the same."""
SAMPLED_VOXELS = 4096
"""Voxels of each image that pairs are short-listed by."""


def find_duplicates(ct_N1DHW: Float[np.ndarray, "N 1 D H W"], *, span: float) -> Iterator[tuple[int, int, bool]]:
    """Pairs of rows, the lower first, and whether they are equal to the bit.

    Args:
        ct_N1DHW: prepared CTs.
        span: what the window's width became.
    """
    step = max(1, int(np.ceil((np.prod(ct_N1DHW.shape[2:]) / SAMPLED_VOXELS) ** (1 / 3))))
    sampled = np.stack([np.asarray(ct[0, ::step, ::step, ::step]).ravel() for ct in ct_N1DHW])
    digests = [sha256_bytes(np.ascontiguousarray(ct).data.cast("B")) for ct in ct_N1DHW]
    for a in range(len(sampled)):
        differences = np.abs(sampled[a + 1 :] - sampled[a]).mean(axis=1) / span
        for b in a + 1 + np.flatnonzero(differences < 5 * RELATIVE_TOLERANCE):
            exact = digests[a] == digests[b]
            if exact or float(np.abs(ct_N1DHW[a] - ct_N1DHW[b]).mean()) / span < RELATIVE_TOLERANCE:
                yield a, int(b), exact
