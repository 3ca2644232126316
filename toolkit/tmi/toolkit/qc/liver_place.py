"""Check that a mask lies where a liver lies: in the trunk, below the lungs and in front of the spine.

The landmarks are found in the CT itself, on a grid thinned to about 4 mm. A landmark that is not in the CT, such as the
lungs of a CT that ends below the dome, is no finding: the check reports positive evidence of another place only. The
side of the body is checked by `liver-left`. Arrays are [D,H,W] in HU; D increases upwards, H to the front, W to the
patient's right.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.cases.case import CT_FILE, MASK_FILE
from tmi.toolkit.imaging.volume import Volume
from tmi.toolkit.issues.issue import Issue

GRID_MM = 4.0
"""Distance of the voxels that are used, along each axis; coarser axes are used in full."""
TISSUE_ABOVE_HU = -300
LUNG_HU = (-950, -450)
"""Range of lung tissue; bowel gas and the air around the patient lie below it, but for the blurred edges."""
BONE_ABOVE_HU = 200
MIN_LUNG_ML, MIN_BONE_ML = 15.0, 5.0
"""Smallest volumes that count as lungs and as bone."""
MAX_BELOW_LUNGS_MM = 30.0
"""Largest distance of the mask's top below the lower end of the lungs. A liver reaches up between them."""
LUNG_END = 0.02
"""Share of the lung below their lower end, so that gas in the bowel is left out."""
MAX_OVER_LUNG = 0.3
"""Largest share of the mask that has lung below it."""
CUT_MM = 10.0
"""A mask that ends this close to the top of the CT may be cut off below the lungs."""
MIN_TOP_SHARE = 0.2
"""Share of the largest slice of the body from which a slice shows the body."""
SPINE_SHARE = 0.3
"""Share of the mask's slices in which a voxel of the spine is bone: discs and the spongy bone of old age are not."""
MIN_SPINE_CM2 = 2.0
MIN_BESIDE_SPINE_MM = 45.0
"""Least tissue in front of the spine and on both sides; limbs have less."""
MIN_FRONT_TO_BACK = 1.15
"""Least ratio of the tissue in front of the spine to that behind it; trunks have 1.3 to 5, thighs about 1."""
FIX = "check whether the mask is the liver's, and whether the CT shows the upper abdomen"


@dataclass(frozen=True)
class _Landmarks:
    """Thinned volumes, and the distances of their voxels."""

    mask: NDArray[np.bool_]
    lung: NDArray[np.bool_]
    bone: NDArray[np.bool_]
    tissue: NDArray[np.bool_]
    step_mm: tuple[float, ...]

    @property
    def voxel_ml(self) -> float:
        return float(np.prod(self.step_mm)) / 1000.0


def check_place(ct: Volume, inside: NDArray[np.bool_]) -> Iterator[Issue]:
    """Yield `liver-place` if the mask lies where no liver can lie.

    Args:
        ct: the CT in HU.
        inside: the mask, not empty.
    """
    found = _landmarks(ct, inside)
    place = None if not found.mask.any() else _wrong_place(found)
    if place is not None:
        yield Issue.of("liver-place", f"{MASK_FILE} does not lie where a liver lies: {place}", FIX)


def _landmarks(ct: Volume, inside: NDArray[np.bool_]) -> _Landmarks:
    steps = [max(1, int(GRID_MM / s)) for s in ct.spacing_DHW_mm]
    thin = tuple(slice(None, None, n) for n in steps)
    hu: NDArray[Any] = ct.array_DHW[thin].copy()
    tissue = hu > TISSUE_ABOVE_HU
    lung = (hu > LUNG_HU[0]) & (hu < LUNG_HU[1])
    # a view of the inner body alone has no air around it: its faces close the lungs
    closed = hu.size and _air_on_faces(hu) < 0.2
    enclosing = _opened(tissue)
    for axis in (1, 2):
        for flip in (False, True):
            side = np.flip(enclosing, axis) if flip else enclosing
            before = np.logical_or.accumulate(side, axis=axis)
            lung &= (np.flip(before, axis) if flip else before) | bool(closed)
    return _Landmarks(
        mask=np.ascontiguousarray(inside[thin]),
        lung=_eroded(lung),  # the blurred edge of gas is one voxel wide
        bone=hu > BONE_ABOVE_HU,
        tissue=tissue,
        step_mm=tuple(s * n for s, n in zip(ct.spacing_DHW_mm, steps, strict=True)),
    )


def _air_on_faces(hu: NDArray[Any]) -> float:
    faces = [hu[:, 0], hu[:, -1], hu[:, :, 0], hu[:, :, -1]]
    return float(np.mean([(f <= LUNG_HU[0]).mean() for f in faces]))


def _eroded(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep the voxels whose four neighbours in the slice are set."""
    kept = mask.copy()
    kept[:, 1:] &= mask[:, :-1]
    kept[:, :-1] &= mask[:, 1:]
    kept[:, :, 1:] &= mask[:, :, :-1]
    kept[:, :, :-1] &= mask[:, :, 1:]
    return kept


def _opened(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Remove what is at most two voxels thick in the slice, such as the table's shells."""
    core = _eroded(mask)
    grown = core.copy()
    grown[:, 1:] |= core[:, :-1]
    grown[:, :-1] |= core[:, 1:]
    grown[:, :, 1:] |= core[:, :, :-1]
    grown[:, :, :-1] |= core[:, :, 1:]
    return grown


def _wrong_place(found: _Landmarks) -> str | None:
    """Return the evidence that the mask lies elsewhere; None if there is none."""
    levels = np.flatnonzero(found.mask.any(axis=(1, 2)))
    spine_h = _spine(found, levels)
    if np.count_nonzero(found.lung) * found.voxel_ml >= MIN_LUNG_ML:
        share = np.cumsum(found.lung.sum(axis=(1, 2))) / np.count_nonzero(found.lung)
        end = int(np.searchsorted(share, LUNG_END))
        below_mm = (end - int(levels[-1])) * found.step_mm[0]
        if below_mm > MAX_BELOW_LUNGS_MM:
            return f"its top lies {below_mm:.0f} mm below the lungs"
        over = np.logical_or.accumulate(found.lung, axis=0)[found.mask].mean()
        if over > MAX_OVER_LUNG:
            return f"{over:.0%} of it has lung below it"
    elif np.count_nonzero(found.bone) * found.voxel_ml < MIN_BONE_ML:
        return None  # a CT without lungs and bones shows no landmark
    elif (_top(found.tissue) - levels[-1]) * found.step_mm[0] > CUT_MM:
        return f"{CT_FILE} shows no lung above it"
    elif spine_h is None:
        return f"{CT_FILE} shows neither lungs nor a spine"
    if spine_h is not None and np.nonzero(found.mask)[1].mean() < spine_h:
        return "it lies behind the middle of the spine"
    return None


def _top(tissue: NDArray[np.bool_]) -> int:
    """Return the highest slice of the body; the slices above it are padding."""
    area = tissue.sum(axis=(1, 2))
    return int(np.flatnonzero(area >= MIN_TOP_SHARE * area.max())[-1])


def _spine(found: _Landmarks, levels: NDArray[np.intp]) -> float | None:
    """Return the middle along H of the bone that runs through the mask's slices in a trunk; None if there is none."""
    part = slice(int(levels[0]), int(levels[-1]) + 1)
    column = found.bone[part].mean(axis=0) >= SPINE_SHARE
    _, step_h, step_w = found.step_mm
    if np.count_nonzero(column) * step_h * step_w / 100.0 < MIN_SPINE_CM2:
        return None
    middle_h, middle_w = (float(k.mean()) for k in np.nonzero(column))
    h, w = round(middle_h), round(middle_w)
    tissue = found.tissue[part].mean(axis=0) >= SPINE_SHARE
    front, back = tissue[h:, w].sum() * step_h, tissue[:h, w].sum() * step_h
    beside = min(tissue[h, w:].sum(), tissue[h, :w].sum()) * step_w
    return middle_h if min(front, beside) >= MIN_BESIDE_SPINE_MM and front >= MIN_FRONT_TO_BACK * back else None
