"""Localization metrics of a map on the CT's own grid, whose voxels have equal size.

m the map (>= 0), L the liver's voxels, B the body's:

    share in liver = sum_L m / sum m             share in body = sum_B m / sum m
    liver's part of the body = |L & B| / |B|     the share in liver of a map that is uniform inside the body
    pointing game: whether the voxel with the largest m lies in L (J. Zhang et al. 2018)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import ndimage

BODY_HU = -300
"""Threshold of tissue in HU; lungs and bowel gas are filled afterwards."""


@dataclass(frozen=True, kw_only=True)
class LocalizationMetrics:
    """Shares are None if the map is 0 everywhere; metrics of the liver are None without a mask."""

    in_body: float | None
    """Share of the map inside the body."""
    in_liver: float | None
    """Share of the map inside the liver."""
    liver_of_body: float | None
    """Volume of the liver as a fraction of the body's."""
    pointing: bool | None
    """Whether the largest value lies in the liver."""
    largest_at_DHW: tuple[int, int, int] | None
    """Canonical voxel of the largest value."""


def localization_metrics(
    map_DHW: Float[np.ndarray, "D H W"],
    body_DHW: Bool[np.ndarray, "D H W"],
    liver_DHW: Bool[np.ndarray, "D H W"] | None,
) -> LocalizationMetrics:
    """Localization metrics of one map."""
    total = float(map_DHW.sum(dtype=np.float64))
    largest = tuple(int(i) for i in np.unravel_index(int(np.argmax(map_DHW)), map_DHW.shape)) if total > 0 else None

    def share(mask: NDArray[np.bool_] | None) -> float | None:
        if mask is None or total <= 0:
            return None
        return float(map_DHW[mask].sum(dtype=np.float64)) / total

    body_voxels = int(np.count_nonzero(body_DHW))
    liver_of_body = (
        None if liver_DHW is None or not body_voxels else int(np.count_nonzero(liver_DHW & body_DHW)) / body_voxels
    )
    return LocalizationMetrics(
        in_body=share(body_DHW),
        in_liver=share(liver_DHW),
        liver_of_body=liver_of_body,
        pointing=None if liver_DHW is None or largest is None else bool(liver_DHW[largest]),
        largest_at_DHW=None if largest is None else (largest[0], largest[1], largest[2]),
    )


def body_mask(ct_DHW: NDArray[Any]) -> Bool[np.ndarray, "D H W"]:
    """Largest connected component above -300 HU, filled in each axial slice; excludes the table and surrounding air."""
    # Opening separates the patient from the table where they touch.
    tissue = ndimage.binary_opening(ct_DHW > BODY_HU, iterations=1)
    labels, count = ndimage.label(tissue)
    if count == 0:
        return np.zeros(ct_DHW.shape, dtype=bool)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0  # background
    body: NDArray[np.bool_] = labels == int(sizes.argmax())
    for plane in body:
        ndimage.binary_fill_holes(plane, output=plane)
    return body


def centre(mask_DHW: Bool[np.ndarray, "D H W"]) -> tuple[int, int, int]:
    """Voxel nearest to the centre of mass; the middle of the volume if the mask is empty."""
    if not mask_DHW.any():
        depth, height, width = mask_DHW.shape
        return depth // 2, height // 2, width // 2
    middle: list[int] = []
    for axis in range(3):
        count = mask_DHW.sum(axis=tuple(a for a in range(3) if a != axis))
        middle.append(round(float(np.average(np.arange(count.size), weights=count))))
    return middle[0], middle[1], middle[2]
