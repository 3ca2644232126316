"""Checks of a liver mask's shape: planes that were not drawn, and holes such as a tumour with a label of its own.

Arrays are [D,H,W]. Both checks need the mask only, so that they hold for every format.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.cases.case import MASK_FILE
from tmi.toolkit.issues.issue import Issue

GAP_FRACTION = 0.05
"""A plane is a gap if its area is below this fraction of the smaller of the largest areas on its two sides."""
MAX_CLOSED_FRACTION = 0.02
"""Largest volume of holes, relative to the mask, that is no finding. Complete livers have up to 0.004."""
MAX_OPEN_FRACTION = 0.05
"""The same with holes that are open to one side, as of a tumour at the surface. Complete livers have up to 0.018."""
MAX_THIN_GAP_FRACTION = 0.08
"""Largest volume of gaps of one or two planes, relative to the mask, that is no finding. Complete livers have up to
0.01."""
SAMPLES = 64
"""Number of voxels per axis to which a mask is thinned."""
PLANES = ("slices", "coronal planes", "sagittal planes")
"""Names of the planes normal to D, H, W."""


def check_shape(inside: NDArray[np.bool_]) -> Iterator[Issue]:
    """Yield the findings of a mask's shape.

    Args:
        inside: the mask, cropped to its bounding box.
    """
    axis, gaps = count_gap_planes(inside)
    if gaps:
        yield Issue.of(
            "mask-gap",
            f"{MASK_FILE} has {gaps} {PLANES[axis]} inside the structure that are empty, or nearly so",
            "draw it on every slice; a liver of separate parts needs no fix",
        )
        return
    axis, fraction = thin_gap_fraction(inside)
    if fraction > MAX_THIN_GAP_FRACTION:
        yield Issue.of(
            "mask-gap",
            f"{MASK_FILE} has gaps of one or two {PLANES[axis]} in a part of it, {fraction:.0%} of its volume",
            "draw it on every slice, all of it",
        )
        return
    closed, with_open = hole_fractions(inside)
    if closed > MAX_CLOSED_FRACTION or with_open > MAX_OPEN_FRACTION:
        yield Issue.of(
            "mask-holes",
            f"{MASK_FILE} has holes of {with_open:.0%} of its volume",
            "include tumours, cysts and vessels: join their labels with the liver's (--mask-label 1,2)",
        )


def count_gap_planes(inside: NDArray[np.bool_]) -> tuple[int, int]:
    """Return the axis with the most gaps and their number; a liver's profile of areas has none.

    Plane k with area a[k] is a gap if a[k] < GAP_FRACTION * min(max(a[:k]), max(a[k+1:])): the mask is interrupted
    between two parts that are both much larger, as if it was drawn on every second slice.

    Args:
        inside: the mask. Each plane is thinned to at most `SAMPLES` voxels per axis.
    """
    gaps = []
    for axis in range(3):
        thinned = inside[tuple(slice(None) if a == axis else _step(n) for a, n in enumerate(inside.shape))]
        area = np.count_nonzero(thinned, axis=tuple(a for a in range(3) if a != axis)).astype(np.float64)
        before, after = np.maximum.accumulate(area), np.maximum.accumulate(area[::-1])[::-1]
        gaps.append(int((area < GAP_FRACTION * np.minimum(before, after)).sum()))
    axis = int(np.argmax(gaps))
    return axis, gaps[axis]


def thin_gap_fraction(inside: NDArray[np.bool_]) -> tuple[int, float]:
    """Return the axis with the largest volume of thin gaps, and this volume relative to the mask's.

    A voxel outside the mask belongs to a thin gap if the mask lies within two planes before and within two planes after
    it: a part of the liver was drawn on every second or third slice, while another part was drawn on each.

    Args:
        inside: the mask. Each plane is thinned to at most `SAMPLES` voxels per axis.
    """
    fractions = []
    for axis in range(3):
        thinned = inside[tuple(slice(None) if a == axis else _step(n) for a, n in enumerate(inside.shape))]
        planes = np.moveaxis(thinned, axis, 0)
        padded = np.pad(planes, ((2, 2), (0, 0), (0, 0)))
        count = len(planes)
        near = (padded[1 : count + 1] | padded[:count]) & (padded[3 : count + 3] | padded[4 : count + 4])
        fractions.append(int(np.count_nonzero(near & ~planes)) / max(1, int(np.count_nonzero(planes))))
    axis = int(np.argmax(fractions))
    return axis, float(fractions[axis])


def hole_fractions(inside: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the volume of the holes relative to the mask's: of closed ones, and with those open to one side.

    A voxel outside the mask belongs to a hole if it meets the mask in all six directions along the axes, and to one
    that is open to one side if it meets the mask in five. Grooves and the tunnel of the vena cava are open to two.

    Args:
        inside: the mask. It is thinned to at most `SAMPLES` voxels per axis.
    """
    thinned = np.ascontiguousarray(inside[tuple(_step(n) for n in inside.shape)])
    met = np.zeros(thinned.shape, dtype=np.uint8)  # number of directions that lead to the mask
    for axis in range(3):
        met += np.logical_or.accumulate(thinned, axis=axis)
        met += np.flip(np.logical_or.accumulate(np.flip(thinned, axis), axis=axis), axis)
    met[thinned] = 0
    volume = max(1, int(np.count_nonzero(thinned)))
    return int(np.count_nonzero(met == 6)) / volume, int(np.count_nonzero(met >= 5)) / volume


def _step(size: int) -> slice:
    return slice(None, None, max(1, -(-size // SAMPLES)))
