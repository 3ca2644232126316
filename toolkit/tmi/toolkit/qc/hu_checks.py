"""Are a volume's values Hounsfield units, and if not, what went wrong? And are its slices what a scanner gives?

Everything is judged on a sample of 33 to 64 voxels an axis, spread over the volume; the whole of it is looked at only
where the sample raises a suspicion, because these checks run in front of every prediction.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.cases.case import CT_FILE

SAMPLES = 64
"""Voxels an axis that the sample keeps at the most; more than half as many where there are so many."""
AIR_HU = (-1100, -500)
"""Air, lung and the air around the patient; a CT of a body shows some."""
MAX_HU = 20_000
"""Above this lie no tissues, implants and 12-bit data included."""
SOFT_HU = (-200, 300)
SOFT_FRACTION = 0.02
"""Part of a body's CT that is fat or soft tissue, at the least."""
UNSHIFTED_AIR = (-50, 250)
"""Air and lung where the offset of -1024 was left out."""
UNSHIFTED_SOFT = (850, 1300)
"""Fat to enhanced vessels where it was left out."""
PADDING_BELOW_HU = -1100
BELOW_AIR_FRACTION = 0.05
"""Part of a CT that may lie below air without being the one value of its padding."""
NOT_HU = frozenset({"ct-8bit", "ct-rescaled", "ct-offset", "ct-not-hu"})
"""Checks after which nothing can be said of what lies under a mask."""
PLATEAU = 1e-4
"""Part of the voxels that hold the very same lowest value, from which on it is padding and not noise."""
FILL_FRACTION = 0.10
"""Part of a face of the volume that is exactly 0 HU, from which on it was filled with it."""

RawFinding = tuple[str, str, str]
"""Code, what is wrong, how to mend it."""
EXPORT_IN_HU_FIX = "give the CT in Hounsfield units: export it from its series with slope and intercept applied"


def sampled(array_DHW: NDArray[np.generic]) -> NDArray[np.generic]:
    """Every n-th voxel along each axis, `SAMPLES` of them at the most, close together."""
    return array_DHW[tuple(slice(None, None, _step(n)) for n in array_DHW.shape)].copy()


def _step(n: int) -> int:
    return -(-n // SAMPLES)


def check_values(array_DHW: NDArray[np.generic]) -> Iterator[RawFinding]:
    """Whether the values are Hounsfield units of a body; then whether padding was left in."""
    sample = sampled(array_DHW)
    low, high = _ends(array_DHW)
    span = f"{CT_FILE} holds values from {low:g} to {high:g}"
    if high - low <= 16:
        yield "ct-rescaled", f"{span}: it was scaled for a network or normalised", EXPORT_IN_HU_FIX
    elif low >= 0 and high <= 255:
        yield "ct-8bit", f"{span}: a picture of 8 bits, not Hounsfield units", EXPORT_IN_HU_FIX
    elif not _share(sample, AIR_HU) and _is_unshifted(sample):
        yield "ct-offset", f"{span}: air lies near 0, so the offset of -1024 was left out", EXPORT_IN_HU_FIX
    elif not _share(sample, AIR_HU) and not _share(array_DHW, AIR_HU):
        yield (
            "ct-not-hu",
            f"{span} and no air, which are no Hounsfield units of a body",
            f"{EXPORT_IN_HU_FIX}; no other modality",
        )
    elif (
        high > MAX_HU
        or high - low <= 255
        or _share(sample, SOFT_HU) < SOFT_FRACTION
        or _share(sample, (low + 1, PADDING_BELOW_HU)) > BELOW_AIR_FRACTION
    ):
        yield "ct-not-hu", f"{span}, which are no Hounsfield units of a body", f"{EXPORT_IN_HU_FIX}; no other modality"
    else:
        yield from _padding(array_DHW, low)


def _ends(array_DHW: NDArray[np.generic]) -> tuple[float, float]:
    """Lowest and highest value; each plane is looked at for both while it lies in the processor's cache."""
    ends: list[tuple[Any, Any]] = [(plane.min(), plane.max()) for plane in array_DHW]
    return float(min(low for low, _ in ends)), float(max(high for _, high in ends))


def _share(array: NDArray[np.generic], between: tuple[float, float]) -> float:
    values: NDArray[Any] = array
    return float(((values >= between[0]) & (values <= between[1])).mean())


def _is_unshifted(sample: NDArray[np.generic]) -> bool:
    """Air near 0 and soft tissue near 1024, each in a good part of the volume."""
    return _share(sample, UNSHIFTED_SOFT) > 0.05 and _share(sample, UNSHIFTED_AIR) > 0.02


def _padding(array_DHW: NDArray[np.generic], low: float) -> Iterator[RawFinding]:
    if low < PADDING_BELOW_HU:
        count = int(np.count_nonzero(array_DHW == low))
        if count >= max(16, PLATEAU * array_DHW.size):
            yield (
                "ct-padding",
                f"{CT_FILE} is padded: {count} voxels of {low:g} HU",
                "nothing to do: the window clips padding to air; `tmi check --fix ct-padding` sets it to -1024",
            )
    filled = max(float((array_DHW.take(k, axis=a) == 0).mean()) for a in range(3) for k in (0, -1))
    if filled > FILL_FRACTION:
        yield (
            "ct-fill",
            f"{CT_FILE} is filled with 0 HU, the value of water, on {filled:.0%} of a face of the volume",
            "fill with air (-1024) where the CT is cropped, turned or resampled",
        )


def check_slices(array_DHW: NDArray[np.generic]) -> Iterator[RawFinding]:
    """Slices (along depth) that are there twice, or that hold one value between slices that do not.

    A slice that was left out without a trace cannot be seen in a volume: that shows at import only.
    """
    sample = array_DHW[:, :: _step(array_DHW.shape[1]), :: _step(array_DHW.shape[2])]
    suspected = [
        int(d) for d in np.flatnonzero((sample == sample[:, :1, :1]).all(axis=(1, 2))) if _is_constant(array_DHW[d])
    ]
    lively = sorted(set(range(array_DHW.shape[0])) - set(suspected))
    blank = [d for d in suspected if lively and lively[0] < d < lively[-1]]
    if blank:
        yield (
            "ct-blank-slice",
            f"{CT_FILE} holds {len(blank)} slice(s) of one single value, the first is slice {blank[0]}: "
            "slices were missing and were filled",
            "export the whole series again; a gap is never filled here",
        )
    same = np.flatnonzero((sample[1:] == sample[:-1]).all(axis=(1, 2)))
    twice = [int(d) for d in same if d not in suspected and np.array_equal(array_DHW[d], array_DHW[d + 1])]
    if twice:
        yield (
            "ct-duplicate-slice",
            f"{CT_FILE} holds {len(twice)} slice(s) twice, the first is slice {twice[0]}",
            "export the series again with every slice once, at its own spacing",
        )


def _is_constant(plane: NDArray[np.generic]) -> bool:
    return bool((plane == plane.flat[0]).all())
