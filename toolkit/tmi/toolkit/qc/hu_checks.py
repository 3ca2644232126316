"""Checks that a CT volume holds Hounsfield units and that no slice is filled or duplicated.

The checks run before every prediction and therefore use a sample of 33 to 64 voxels per axis, spread evenly over the
volume. The complete volume is read only where the sample raises a suspicion. Arrays are [D,H,W], values are in HU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.cases.case import CT_FILE
from tmi.toolkit.issues.issue import Issue

SAMPLES = 64
"""Largest number of sampled voxels per axis; longer axes keep more than half as many."""
AIR_HU = (-1100, -500)
"""Range of lung and of the air around the patient; every CT of a body has some."""
MAX_HU = 20_000
"""Upper bound of plausible values, implants and 12-bit data included."""
MAX_METAL_FRACTION = 1e-3
"""Largest fraction of values above `MAX_HU`: the extended scale of scanners reaches 30,710 HU in dense metal."""
IMPOSSIBLE_HU = 2**16
"""Magnitude that no voxel has: scanners store 16 bits. A single larger value is damage."""
SOFT_HU = (-200, 300)
"""Range of fat and soft tissue."""
SOFT_FRACTION = 0.02
"""Smallest fraction of fat and soft tissue in a CT of a body."""
UNSHIFTED_AIR = (-50, 250)
"""Range of air and lung if the offset of -1024 was not applied."""
UNSHIFTED_SOFT = (850, 1300)
"""Range of fat to enhanced vessels if the offset was not applied."""
PADDING_BELOW_HU = -1100
BELOW_AIR_FRACTION = 0.05
"""Largest fraction of voxels that may lie between padding and air."""
NOT_HU = frozenset({"ct-8bit", "ct-rescaled", "ct-offset", "ct-not-hu"})
"""Checks whose failure makes the values under a mask meaningless."""
PLATEAU = 1e-4
"""Fraction of voxels with the lowest value from which that value is padding rather than noise."""
FILL_FRACTION = 0.10
"""Fraction of exact 0 HU on a face of the volume from which the face was filled with 0."""

EXPORT_IN_HU_FIX = "give the CT in Hounsfield units: export it from its series with slope and intercept applied"


def sampled(array_DHW: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return every n-th voxel along each axis, at most `SAMPLES` per axis, as a contiguous copy."""
    return array_DHW[tuple(slice(None, None, _step(n)) for n in array_DHW.shape)].copy()


def _step(n: int) -> int:
    return -(-n // SAMPLES)  # ceil(n / SAMPLES)


def check_values(array_DHW: NDArray[np.generic]) -> Iterator[Issue]:
    """Check that the values are Hounsfield units of a body; if they are, check for padding.

    The first matching check is reported: each later one assumes that the earlier ones passed.
    """
    sample = sampled(array_DHW)
    low, high = _value_range(array_DHW)
    span = f"{CT_FILE} has values from {low:g} to {high:g}"
    if high - low <= 16:
        yield Issue.of("ct-rescaled", f"{span}: it was normalised", EXPORT_IN_HU_FIX)
    elif low >= 0 and high <= 255:
        yield Issue.of("ct-8bit", f"{span}: an 8-bit picture, not Hounsfield units", EXPORT_IN_HU_FIX)
    elif not _fraction(sample, AIR_HU) and _is_unshifted(sample):
        yield Issue.of(
            "ct-offset", f"{span}: air lies near 0, so the offset of -1024 was not applied", EXPORT_IN_HU_FIX
        )
    # thin air around the patient can fall between the sampled voxels: confirm on the complete volume
    elif not _fraction(sample, AIR_HU) and not _fraction(array_DHW, AIR_HU):
        yield Issue.of(
            "ct-not-hu",
            f"{span} and no air: these are not Hounsfield units of a body",
            f"{EXPORT_IN_HU_FIX}; other modalities are not supported",
        )
    elif (
        max(high, -low) > IMPOSSIBLE_HU
        or (high > MAX_HU and _fraction(array_DHW, (MAX_HU, np.inf)) > MAX_METAL_FRACTION)
        or high - low <= 255
        or _fraction(sample, SOFT_HU) < SOFT_FRACTION
        or _fraction(sample, (low + 1, PADDING_BELOW_HU)) > BELOW_AIR_FRACTION
    ):
        yield Issue.of(
            "ct-not-hu",
            f"{span}: these are not Hounsfield units of a body",
            f"{EXPORT_IN_HU_FIX}; other modalities are not supported",
        )
    else:
        yield from _check_padding(array_DHW, low)


def _value_range(array_DHW: NDArray[np.generic]) -> tuple[float, float]:
    """Return the lowest and the highest value."""
    # plane by plane, so that the second reduction reads each plane from the CPU cache
    ranges: list[tuple[Any, Any]] = [(plane.min(), plane.max()) for plane in array_DHW]
    return float(min(low for low, _ in ranges)), float(max(high for _, high in ranges))


def _fraction(array: NDArray[np.generic], bounds: tuple[float, float]) -> float:
    """Return the fraction of values within the inclusive bounds."""
    values: NDArray[Any] = array
    return float(((values >= bounds[0]) & (values <= bounds[1])).mean())


def _is_unshifted(sample: NDArray[np.generic]) -> bool:
    """Return whether air lies near 0 and soft tissue near 1024, each with a sizeable fraction of the voxels."""
    return _fraction(sample, UNSHIFTED_SOFT) > 0.05 and _fraction(sample, UNSHIFTED_AIR) > 0.02


def _check_padding(array_DHW: NDArray[np.generic], low: float) -> Iterator[Issue]:
    if low < PADDING_BELOW_HU:
        count = int(np.count_nonzero(array_DHW == low))
        if count >= max(16, PLATEAU * array_DHW.size):
            yield Issue.of(
                "ct-padding",
                f"{CT_FILE} is padded: {count} voxels of {low:g} HU",
                "none needed: the window clips padding to air; `tmi check --fix ct-padding` sets it to -1024",
            )
    filled = max(float((array_DHW.take(k, axis=a) == 0).mean()) for a in range(3) for k in (0, -1))
    if filled > FILL_FRACTION:
        yield Issue.of(
            "ct-fill",
            f"{CT_FILE} is filled with 0 HU, the value of water, on {filled:.0%} of a face of the volume",
            "fill with air (-1024) when cropping, rotating or resampling the CT",
        )


def check_slices(array_DHW: NDArray[np.generic]) -> Iterator[Issue]:
    """Check for duplicate slices along depth, and for constant slices between slices with content.

    A slice that was dropped leaves no trace in the volume; only the import detects it, from the DICOM headers.
    """
    sample = array_DHW[:, :: _step(array_DHW.shape[1]), :: _step(array_DHW.shape[2])]
    # candidates from the in-plane sample are confirmed on the complete plane
    constant = [
        int(d) for d in np.flatnonzero((sample == sample[:, :1, :1]).all(axis=(1, 2))) if _is_constant(array_DHW[d])
    ]
    varying = sorted(set(range(array_DHW.shape[0])) - set(constant))
    # constant slices at either end are padding, not gaps
    blank = [d for d in constant if varying and varying[0] < d < varying[-1]]
    if blank:
        yield Issue.of(
            "ct-blank-slice",
            f"{CT_FILE} has {len(blank)} slice(s) of one constant value, the first is slice {blank[0]}: "
            "missing slices were filled",
            "export the complete series again; gaps are never filled here",
        )
    candidates = np.flatnonzero((sample[1:] == sample[:-1]).all(axis=(1, 2)))
    duplicates = [int(d) for d in candidates if d not in constant and np.array_equal(array_DHW[d], array_DHW[d + 1])]
    if duplicates:
        yield Issue.of(
            "ct-duplicate-slice",
            f"{CT_FILE} has {len(duplicates)} slice(s) twice, the first is slice {duplicates[0]}",
            "export the series again with each slice once and with its original spacing",
        )


def _is_constant(plane: NDArray[np.generic]) -> bool:
    return bool((plane == plane.flat[0]).all())
