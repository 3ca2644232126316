"""Checks of a CT and its mask that are cheap enough for every prediction; `hounsfield_checks` judges the values.

Thresholds are wide: they catch a wrong file, unit or orientation, and leave pathology alone. Literature values: liver
parenchyma 40 to 120 HU with and without contrast, steatosis down to about -20; adult livers 0.8 to 2.5 litres.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.cases.case import CT_FILE, MASK_FILE
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.imaging.nifti import is_sheared
from tmi.toolkit.imaging.volume import Volume
from tmi.toolkit.qc.check_registry import CHECKS
from tmi.toolkit.qc.hu_checks import RawFinding, check_slices, check_values, sampled

SPACING_MM = (0.2, 12.0)
WIDTH_MM = (100.0, 1200.0)
"""Size of the field of view from side to side; a table of a scanner is no wider."""
MM_PER_UNIT = {"meter": 1000.0, "micron": 0.001, "centimetre": 10.0}
"""Units that spacing is mistaken in. NIfTI can declare the first two, under these names."""
MIN_SLICES = 10
TILT_DEGREES = 10.0
LIVER_HU = (-40, 220)
"""Where liver voxels lie, vessels and lesions included."""
LIVER_FRACTION = 0.7
"""Part of a mask's voxels that must lie there."""
SKIP_MIRROR_FRACTION = 0.95
"""From here on no mirrored mask is tried."""
MIRRORED_FRACTION = 0.9
"""Part of the mirrored mask's voxels that must lie there, and 0.08 more than of the mask's own."""
TYPICAL_MEAN_HU = (5.0, 180.0)
MAX_LEFT_OFFSET = 0.05
"""How far, in widths of the volume, the liver's middle may lie to the left of the body's."""
MIN_LIVER_ML = 60.0
TYPICAL_LIVER_ML = (500.0, 3500.0)
FACES = (("first", "last"), ("back", "front"), ("left", "right"))
"""Names of the two faces along D, H, W: the first slice is the lowest."""


def check_ct(ct: Volume) -> Iterator[RawFinding]:
    """What is wrong with a CT volume."""
    yield from _spacing(ct)
    slices = ct.array_DHW.shape[0]
    if slices < MIN_SLICES:
        fix = f"give the whole series: at least {MIN_SLICES} slices through the liver"
        yield "ct-few-slices", f"{CT_FILE} has {slices} slices", fix
    yield from check_values(ct.array_DHW)
    yield from check_slices(ct.array_DHW)
    if is_sheared(ct.affine_xyz):
        yield (
            "ct-sheared",
            f"{CT_FILE} has axes that are not at right angles: the gantry's tilt was left in the data",
            "import the series again (`tmi import`), or straighten the volume with `tmi check --fix ct-sheared`",
        )
    elif (tilt := tilt_degrees(ct)) > TILT_DEGREES:
        yield (
            "ct-oblique",
            f"{CT_FILE} is tilted by {tilt:.0f} degrees and is read as if it were not",
            "resample it to the patient's axes: `tmi check --fix ct-oblique`",
        )


def _spacing(ct: Volume) -> Iterator[RawFinding]:
    mend = "export it again with spacing in millimetres"
    if not _plausible_size(ct, 1.0):
        sizes = " x ".join(f"{s:.3g}" for s in ct.spacing_DHW_mm)
        units = [u for u, factor in MM_PER_UNIT.items() if _plausible_size(ct, factor)]
        guess = f"; it looks like the {' or the '.join(units)}" if units else ""
        if ct.unit in units:
            guess, mend = f"; the header says {ct.unit}", "convert it: `tmi check --fix ct-spacing`"
        yield "ct-spacing", f"{CT_FILE} has voxels of {sizes} mm (depth x height x width){guess}", mend
    elif ct.unit in MM_PER_UNIT:
        yield (
            "ct-unit",
            f"{CT_FILE} says its unit is the {ct.unit}, but its voxels have the size of millimetres, which is taken",
            "correct the unit in the header: `tmi check --fix ct-unit`",
        )


def _plausible_size(ct: Volume, factor: float) -> bool:
    spacing = [s * factor for s in ct.spacing_DHW_mm]
    width = spacing[2] * ct.array_DHW.shape[2]
    return SPACING_MM[0] <= min(spacing) and max(spacing) <= SPACING_MM[1] and WIDTH_MM[0] <= width <= WIDTH_MM[1]


def check_mask(ct: Volume, mask: Volume, *, in_hu: bool = True) -> Iterator[RawFinding]:
    """What is wrong with a liver mask on its CT; what lies under it is judged where the CT is in Hounsfield units."""
    inside: NDArray[np.bool_] = mask.array_DHW.astype(bool, copy=False)
    if mask.several_labels:
        yield (
            "mask-labels",
            f"{MASK_FILE} holds several labels, and all of them are taken as the liver",
            "name the liver's label with --mask-label, or store the liver alone",
        )
    volume_ml = float(np.count_nonzero(inside) * np.prod(ct.spacing_DHW_mm) / 1000.0)
    if volume_ml < MIN_LIVER_ML:
        yield "mask-tiny", f"{MASK_FILE} covers {volume_ml:.0f} mL", "segment the whole liver, or choose its label"
    elif not TYPICAL_LIVER_ML[0] <= volume_ml <= TYPICAL_LIVER_ML[1]:
        yield (
            "liver-volume",
            f"{MASK_FILE} covers {volume_ml:.0f} mL",
            "look whether it is the liver, and the whole of it",
        )
    touched = [FACES[a][k] for a in range(3) for k in (0, 1) if inside.take(-k, axis=a).any()]
    if touched:
        yield (
            "mask-edge",
            f"{MASK_FILE} touches the volume's {', '.join(touched)} face: a part of the liver is cut off",
            "give a CT that covers the whole liver",
        )
    if in_hu:
        yield from _content(ct, inside)


def _content(ct: Volume, inside: NDArray[np.bool_]) -> Iterator[RawFinding]:
    """Does the mask lie on a liver?"""
    box = _box(inside)
    fraction, mean_hu = _soft(ct.array_DHW[box], inside[box])
    if fraction < SKIP_MIRROR_FRACTION:
        mirrored = {
            axis: _soft(np.flip(ct.array_DHW, i)[box], inside[box])[0]
            for i, axis in enumerate(("depth", "height", "width"))
        }
        axis = max(mirrored, key=lambda a: mirrored[a])
        if mirrored[axis] > max(MIRRORED_FRACTION, fraction + 0.08):
            yield (
                "mask-flipped",
                f"{MASK_FILE} fits the liver only when mirrored along {axis}: "
                f"{fraction:.0%} of it lies on soft tissue, mirrored {mirrored[axis]:.0%}",
                "export it again from the same series with its orientation",
            )
            return
    if fraction < LIVER_FRACTION:
        yield (
            "mask-content",
            f"{fraction:.0%} of {MASK_FILE} lies on soft tissue",
            "check that mask and CT belong together, and that the label is the liver's",
        )
        return
    if not TYPICAL_MEAN_HU[0] <= mean_hu <= TYPICAL_MEAN_HU[1]:
        yield (
            "liver-hu",
            f"{MASK_FILE} has a mean of {mean_hu:.0f} HU, which is unusual for a liver",
            "look whether it is the liver, and whether the CT is in Hounsfield units",
        )
    body: NDArray[Any] = sampled(ct.array_DHW)
    across = (body > -200).sum(axis=(0, 1))
    middle = float(np.average(np.arange(across.size), weights=across) / across.size) if across.any() else 0.5
    columns = inside[box].sum(axis=(0, 1))
    liver = (box[2].start + float(np.average(np.arange(columns.size), weights=columns))) / inside.shape[2]
    if liver < middle - MAX_LEFT_OFFSET:
        yield (
            "liver-left",
            f"{MASK_FILE} lies in the left half of the body: CT and mask are mirrored, or the organs are",
            "compare with the original series; with situs inversus there is nothing to mend",
        )


def _box(inside: NDArray[np.bool_]) -> tuple[slice, slice, slice]:
    """The smallest box around a mask that is not empty."""
    slices: list[slice] = []
    for axis in range(3):
        part = inside[tuple(slices)]  # already cut along the axes before
        where = np.flatnonzero(part.any(axis=tuple(a for a in range(3) if a != axis)))
        slices.append(slice(int(where[0]), int(where[-1]) + 1))
    return slices[0], slices[1], slices[2]


def _soft(array_DHW: NDArray[np.generic], inside: NDArray[np.bool_]) -> tuple[float, float]:
    """Part of the values under a mask that a liver may have, and their mean."""
    values: NDArray[Any] = array_DHW[inside]
    fraction = float(((values >= LIVER_HU[0]) & (values <= LIVER_HU[1])).mean())
    return fraction, float(values.mean(dtype=np.float64))


def tilt_degrees(volume: Volume) -> float:
    """Largest angle between an axis of the grid and the patient's axis nearest to it."""
    direction = volume.affine_xyz[:3, :3] / np.linalg.norm(volume.affine_xyz[:3, :3], axis=0)
    return float(np.degrees(np.arccos(np.clip(np.abs(direction).max(axis=0), 0.0, 1.0))).max())


def raise_on_error(found: Iterator[RawFinding], case_id: str) -> tuple[str, ...]:
    """The texts of the warnings; raises the first error.

    Raises:
        InputRejectedError: with the check's code.
    """
    warnings = []
    for code, what, fix in found:
        if CHECKS[code].severity == "error":
            raise InputRejectedError(what, fix=fix, code=code, case_id=case_id)
        warnings.append(what)
    return tuple(warnings)
