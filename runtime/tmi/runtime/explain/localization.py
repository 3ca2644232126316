"""Where a map's mass lies: figures on the CT's own grid, whose voxels are all of one size.

m the map (0 or more), L the liver's voxels, B the body's:

    share in liver = sum_L m / sum m             share in body = sum_B m / sum m
    liver's part of the body = |L| / |B|         what a map without any preference inside the body would give
    pointing game: whether the voxel of the largest m lies in L (J. Zhang et al. 2018)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import ndimage

BODY_HU = -300
"""Above lies tissue; lungs and bowel gas are filled in afterwards."""


@dataclass(frozen=True, kw_only=True)
class LocalizationMetrics:
    """Shares are None where the map is 0 everywhere; what needs the liver is None without a mask."""

    in_body: float | None
    """Share of the map's mass inside the body."""
    in_liver: float | None
    """Share inside the liver."""
    liver_of_body: float | None
    """The liver's part of the body's volume."""
    pointing: bool | None
    """Whether the largest value lies in the liver."""
    largest_at_DHW: tuple[int, int, int] | None
    """Where the largest value lies, in canonical voxels."""


def localization_metrics(
    map_DHW: Float[np.ndarray, "D H W"],
    body_DHW: Bool[np.ndarray, "D H W"],
    liver_DHW: Bool[np.ndarray, "D H W"] | None,
) -> LocalizationMetrics:
    """The figures of one map."""
    total = float(map_DHW.sum(dtype=np.float64))
    largest = tuple(int(i) for i in np.unravel_index(int(np.argmax(map_DHW)), map_DHW.shape)) if total > 0 else None

    def share(mask: NDArray[np.bool_] | None) -> float | None:
        if mask is None or total <= 0:
            return None
        return float(map_DHW[mask].sum(dtype=np.float64)) / total

    voxels = int(np.count_nonzero(body_DHW))
    part = None if liver_DHW is None or not voxels else int(np.count_nonzero(liver_DHW & body_DHW)) / voxels
    return LocalizationMetrics(
        in_body=share(body_DHW),
        in_liver=share(liver_DHW),
        liver_of_body=part,
        pointing=None if liver_DHW is None or largest is None else bool(liver_DHW[largest]),
        largest_at_DHW=None if largest is None else (largest[0], largest[1], largest[2]),
    )


def body_mask(ct_DHW: NDArray[Any]) -> Bool[np.ndarray, "D H W"]:
    """The largest connected piece above -300 HU, with what it encloses in each axial slice: no table, no air around."""
    tissue = ndimage.binary_opening(ct_DHW > BODY_HU, iterations=1)
    labels, count = ndimage.label(tissue)
    if count == 0:
        return np.zeros(ct_DHW.shape, dtype=bool)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    body: NDArray[np.bool_] = labels == int(sizes.argmax())
    for plane in body:
        ndimage.binary_fill_holes(plane, output=plane)
    return body


def centre(mask_DHW: Bool[np.ndarray, "D H W"]) -> tuple[int, int, int]:
    """The voxel nearest to the centre of mass; the middle of the volume where the mask is empty."""
    if not mask_DHW.any():
        depth, height, width = mask_DHW.shape
        return depth // 2, height // 2, width // 2
    middle: list[int] = []
    for axis in range(3):
        count = mask_DHW.sum(axis=tuple(a for a in range(3) if a != axis))
        middle.append(round(float(np.average(np.arange(count.size), weights=count))))
    return middle[0], middle[1], middle[2]
