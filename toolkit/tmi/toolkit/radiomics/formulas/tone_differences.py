"""The 5 features of the neighbouring gray tone difference matrix (NGTDM; Amadasun 1989).

With i a gray level, p(i) its share of the voxels and s(i) the summed difference between the voxels of this level and
the mean of their neighbours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

COARSEST = 1e6
"""Coarseness of a region without any difference."""


def tone_difference_features(rows_L3: Float[NDArray[np.float64], "L 3"]) -> dict[str, Any]:
    """Compute the features by name.

    Args:
        rows_L3: number of voxels (above 0), summed difference and gray level of each level that occurs.
    """
    count_L, s_L, i_L = rows_L3.T
    voxels = count_L.sum()
    p_L = count_L / voxels
    occurring = len(p_L)
    difference_sum = s_L.sum()
    weighted = (p_L * s_L).sum()
    distance_LL = i_L[:, None] - i_L[None]
    share_LL = p_L[:, None] + p_L[None]
    contrast = (p_L[:, None] * p_L[None] * distance_LL**2).sum() * difference_sum / voxels
    ip_L, ps_L = i_L * p_L, p_L * s_L
    busy = np.abs(ip_L[:, None] - ip_L[None]).sum()
    strength = (share_LL * distance_LL**2).sum()
    return {
        "Coarseness": 1 / weighted if weighted != 0 else COARSEST,
        "Contrast": contrast / (occurring * (occurring - 1)) if occurring > 1 else 0.0,
        "Busyness": weighted / busy if busy != 0 else 0.0,
        "Complexity": (np.abs(distance_LL) * (ps_L[:, None] + ps_L[None]) / share_LL).sum() / voxels,
        "Strength": strength / difference_sum if difference_sum != 0 else 0.0,
    }
