"""Checks of what the voxels show: is it a CT in Hounsfield units, and does the mask lie on a liver?

Thresholds are wide: they catch a wrong file, unit or orientation, and leave pathology alone. Literature values: liver
parenchyma 40 to 120 HU with and without contrast, steatosis down to about -20; adult livers 0.8 to 2.5 litres.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.case import CT_FILE, MASK_FILE
from tmi.toolkit.check_table import CHECKS
from tmi.toolkit.errors import InputRefusedError
from tmi.toolkit.volume import Volume

AIR_BELOW_HU = -500
"""A CT of a body shows air around or in it."""
BONE_OR_CONTRAST_HU = 5000
"""Above this lie no tissues; 12-bit data without the -1024 offset has no air but stays below it."""
PADDING_BELOW_HU = -1100
SPACING_MM = (0.2, 12.0)
FEWEST_SLICES = 10
TILT_DEGREES = 10.0
LIVER_HU = (-40, 220)
"""Where liver voxels lie, vessels and lesions included."""
LIVER_FRACTION = 0.7
"""Part of a mask's voxels that must lie there."""
TINY_ML = 60.0
USUAL_ML = (500.0, 3500.0)

Found = tuple[str, str, str]
"""Code, what is wrong, how to mend it."""


def check_ct(ct: Volume) -> Iterator[Found]:
    """What is wrong with a CT volume."""
    spacing = ct.spacing_DHW_mm
    if min(spacing) < SPACING_MM[0] or max(spacing) > SPACING_MM[1]:
        sizes = " x ".join(f"{s:.3g}" for s in spacing)
        yield (
            "ct-spacing",
            f"{CT_FILE} has voxels of {sizes} mm (depth x height x width)",
            ("export it again with spacing in millimetres"),
        )
    if ct.array_DHW.shape[0] < FEWEST_SLICES:
        yield (
            "ct-few-slices",
            f"{CT_FILE} has {ct.array_DHW.shape[0]} slices",
            (f"give the whole series: at least {FEWEST_SLICES} slices through the liver"),
        )
    low, high = float(ct.array_DHW.min()), float(ct.array_DHW.max())
    if low > AIR_BELOW_HU or high > 4 * BONE_OR_CONTRAST_HU or high <= low + 255:
        yield (
            "ct-not-hu",
            f"{CT_FILE} holds values from {low:g} to {high:g}, which are no Hounsfield units of a body",
            ("give the CT in Hounsfield units (slope and intercept applied); other modalities are not accepted"),
        )
    elif low < PADDING_BELOW_HU:
        yield (
            "ct-padding",
            f"{CT_FILE} holds values down to {low:g} HU",
            "nothing to do: the window clips padding to air",
        )
    tilt = tilt_degrees(ct)
    if tilt > TILT_DEGREES:
        yield (
            "ct-oblique",
            f"{CT_FILE} is tilted by {tilt:.0f} degrees",
            ("resample it to the patient's axes; it is read as if it were not tilted"),
        )


def check_mask(ct: Volume, mask: Volume) -> Iterator[Found]:
    """What is wrong with a liver mask on its CT."""
    inside: NDArray[np.bool_] = mask.array_DHW.astype(bool, copy=False)
    volume_ml = float(inside.sum() * np.prod(ct.spacing_DHW_mm) / 1000.0)
    if volume_ml < TINY_ML:
        yield "mask-tiny", f"{MASK_FILE} covers {volume_ml:.0f} mL", "segment the whole liver, or choose its label"
    elif not USUAL_ML[0] <= volume_ml <= USUAL_ML[1]:
        yield (
            "liver-volume",
            f"{MASK_FILE} covers {volume_ml:.0f} mL",
            "look whether it is the liver, and the whole of it",
        )
    if inside[0].any() or inside[-1].any():
        yield "mask-edge", f"{MASK_FILE} touches the first or last slice", "give a CT that covers the whole liver"
    fraction = _soft(ct, inside)
    if fraction < LIVER_FRACTION:
        mirrored = {axis: _soft(ct, np.flip(inside, i)) for i, axis in enumerate(("depth", "height", "width"))}
        axis = max(mirrored, key=lambda a: mirrored[a])
        if mirrored[axis] > max(LIVER_FRACTION, fraction + 0.2):
            yield (
                "mask-flipped",
                f"{MASK_FILE} fits soft tissue only when mirrored along {axis}",
                ("export it again from the same series with its orientation"),
            )
        else:
            yield (
                "mask-content",
                f"{fraction:.0%} of {MASK_FILE} lies on soft tissue",
                ("check that mask and CT belong together, and that the label is the liver's"),
            )


def _soft(ct: Volume, inside: NDArray[np.bool_]) -> float:
    values: NDArray[Any] = ct.array_DHW[inside]
    return float(((values >= LIVER_HU[0]) & (values <= LIVER_HU[1])).mean())


def tilt_degrees(volume: Volume) -> float:
    """Largest angle between an axis of the grid and the patient's axis nearest to it."""
    direction = volume.affine_xyz[:3, :3] / np.linalg.norm(volume.affine_xyz[:3, :3], axis=0)
    return float(np.degrees(np.arccos(np.clip(np.abs(direction).max(axis=0), 0.0, 1.0))).max())


def refuse_on_error(found: Iterator[Found], case_id: str) -> tuple[str, ...]:
    """The texts of the warnings; raises the first error.

    Raises:
        InputRefusedError: with the check's code.
    """
    warnings = []
    for code, what, fix in found:
        if CHECKS[code].severity == "error":
            raise InputRefusedError(what, fix=fix, code=code, case_id=case_id)
        warnings.append(what)
    return tuple(warnings)
