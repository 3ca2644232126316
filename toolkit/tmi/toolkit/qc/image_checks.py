"""Checks of a CT's geometry and of its liver mask that run before every prediction; `hu_checks` checks the values.

Thresholds are wide: they detect a wrong file, unit or orientation and let pathology pass. Literature values: liver
parenchyma 40 to 120 HU with and without contrast, steatosis down to about -20 HU; adult livers 0.8 to 2.5 litres.
Arrays are [D,H,W] in HU, spacings in mm.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.cases.case import CT_FILE, MASK_FILE
from tmi.toolkit.cases.provenance import CaseRecord
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.imaging.nifti import is_sheared
from tmi.toolkit.imaging.volume import Volume
from tmi.toolkit.issues.issue import Issue
from tmi.toolkit.qc.hu_checks import check_slices, check_values, sampled
from tmi.toolkit.qc.liver_place import check_place
from tmi.toolkit.qc.mask_shape import check_shape

SPACING_MM = (0.2, 12.0)
WIDTH_MM = (100.0, 1200.0)
"""Range of the field of view from left to right; no scanner has a wider one."""
MM_PER_UNIT = {"meter": 1000.0, "micron": 0.001, "centimetre": 10.0}
"""Units that may be mistaken for millimetres. NIfTI can declare the first two, under these names."""
MIN_SLICES = 10
TILT_DEGREES = 10.0
LIVER_HU = (-40, 220)
"""Range of liver voxels, vessels and lesions included."""
LIVER_FRACTION = 0.7
"""Smallest fraction of a mask's voxels in `LIVER_HU`."""
SKIP_MIRROR_FRACTION = 0.95
"""Fraction in `LIVER_HU` from which mirrored masks are not tried."""
MIRRORED_FRACTION = 0.9
"""Smallest fraction in `LIVER_HU` of a mirrored mask that fits; it must also exceed the mask's own by 0.08."""
TYPICAL_MEAN_HU = (5.0, 180.0)
MAX_LEFT_OFFSET = 0.05
"""Largest offset of the liver's centre to the left of the body's centre, as a fraction of the volume's width."""
MIN_LIVER_ML = 60.0
TYPICAL_LIVER_ML = (500.0, 3500.0)
FACES = (("first", "last"), ("back", "front"), ("left", "right"))
"""Names of the two faces along D, H, W; the first slice is the lowest."""


def check_ct(ct: Volume) -> Iterator[Issue]:
    """Yield the findings of a CT volume."""
    yield from _check_spacing(ct)
    slices = ct.array_DHW.shape[0]
    if slices < MIN_SLICES:
        fix = f"give the complete series: at least {MIN_SLICES} slices through the liver"
        yield Issue.of("ct-few-slices", f"{CT_FILE} has {slices} slices", fix)
    yield from check_values(ct.array_DHW)
    yield from check_slices(ct.array_DHW)
    if is_sheared(ct.affine_xyz):
        yield Issue.of(
            "ct-sheared",
            f"{CT_FILE} has axes that are not at right angles: the gantry tilt was not corrected",
            "import the series again (`tmi import`), or straighten the volume with `tmi check --fix ct-sheared`",
        )
    elif (tilt := tilt_degrees(ct)) > TILT_DEGREES:
        yield Issue.of(
            "ct-oblique",
            f"{CT_FILE} is tilted by {tilt:.0f} degrees and is read without correction",
            "resample it to the patient's axes: `tmi check --fix ct-oblique`",
        )


def _check_spacing(ct: Volume) -> Iterator[Issue]:
    fix = "export it again with spacing in millimetres"
    if not _plausible_size(ct, 1.0):
        sizes = " x ".join(f"{s:.3g}" for s in ct.spacing_DHW_mm)
        units = [u for u, factor in MM_PER_UNIT.items() if _plausible_size(ct, factor)]
        guess = f"; the unit may be the {' or the '.join(units)}" if units else ""
        if ct.unit in units:
            guess, fix = f"; the header declares {ct.unit}", "convert it: `tmi check --fix ct-spacing`"
        yield Issue.of("ct-spacing", f"{CT_FILE} has voxels of {sizes} mm (depth x height x width){guess}", fix)
    elif ct.unit in MM_PER_UNIT:
        yield Issue.of(
            "ct-unit",
            f"{CT_FILE} declares the unit {ct.unit}, but its voxel sizes are plausible in millimetres, which are used",
            "correct the unit in the header: `tmi check --fix ct-unit`",
        )


def _plausible_size(ct: Volume, factor: float) -> bool:
    """Return whether spacing and field of view are plausible after scaling by `factor`."""
    spacing = [s * factor for s in ct.spacing_DHW_mm]
    width = spacing[2] * ct.array_DHW.shape[2]
    return SPACING_MM[0] <= min(spacing) and max(spacing) <= SPACING_MM[1] and WIDTH_MM[0] <= width <= WIDTH_MM[1]


def check_mask(ct: Volume, mask: Volume, *, in_hu: bool = True) -> Iterator[Issue]:
    """Yield the findings of a liver mask on its CT.

    Args:
        ct: the CT.
        mask: the mask, on the CT's grid; not empty.
        in_hu: whether the CT is in Hounsfield units; if not, the values under the mask are not checked.
    """
    inside: NDArray[np.bool_] = mask.array_DHW.astype(bool, copy=False)
    if mask.several_labels:
        yield Issue.of(
            "mask-labels",
            f"{MASK_FILE} has several labels, and all of them are used as the liver",
            "select the liver's label with --mask-label, or store the liver alone",
        )
    volume_ml = float(np.count_nonzero(inside) * np.prod(ct.spacing_DHW_mm) / 1000.0)
    if volume_ml < MIN_LIVER_ML:
        yield Issue.of(
            "mask-tiny", f"{MASK_FILE} covers {volume_ml:.0f} mL", "segment the whole liver, or select its label"
        )
    elif not TYPICAL_LIVER_ML[0] <= volume_ml <= TYPICAL_LIVER_ML[1]:
        yield Issue.of(
            "liver-volume",
            f"{MASK_FILE} covers {volume_ml:.0f} mL",
            "check whether the mask is the liver, and all of it",
        )
    # k = 0 takes the first plane of an axis, k = 1 the last one (index -1)
    touched = [FACES[a][k] for a in range(3) for k in (0, 1) if inside.take(-k, axis=a).any()]
    if touched:
        yield Issue.of(
            "mask-edge",
            f"{MASK_FILE} touches the volume's {', '.join(touched)} face: part of the liver is cut off",
            "give a CT that covers the whole liver",
        )
    box = _bounding_box(inside)
    content = list(_check_content(ct, inside, box)) if in_hu else []
    yield from content
    if not any(issue.severity == "error" for issue in content):  # the shape of another organ says nothing
        yield from check_shape(inside[box])
        if in_hu and volume_ml >= MIN_LIVER_ML and _plausible_size(ct, 1.0):
            yield from check_place(ct, inside)


def _check_content(ct: Volume, inside: NDArray[np.bool_], box: tuple[slice, slice, slice]) -> Iterator[Issue]:
    """Check that the voxels under the mask look like a liver: values, orientation and side of the body."""
    fraction, mean_hu = _liver_statistics(ct.array_DHW[box], inside[box])
    if fraction < SKIP_MIRROR_FRACTION:
        # flipping the CT and keeping the mask is equivalent to flipping the mask, and the box stays valid
        mirrored = {
            axis: _liver_statistics(np.flip(ct.array_DHW, i)[box], inside[box])[0]
            for i, axis in enumerate(("depth", "height", "width"))
        }
        axis = max(mirrored, key=lambda a: mirrored[a])
        if mirrored[axis] > max(MIRRORED_FRACTION, fraction + 0.08):
            yield Issue.of(
                "mask-flipped",
                f"{MASK_FILE} fits the liver only when mirrored along {axis}: "
                f"{fraction:.0%} of it lies on soft tissue, mirrored {mirrored[axis]:.0%}",
                "export it again from the same series with the correct orientation",
            )
            return
    if fraction < LIVER_FRACTION:
        yield Issue.of(
            "mask-content",
            f"{fraction:.0%} of {MASK_FILE} lies on soft tissue",
            "check that mask and CT belong together and that the label is the liver's",
        )
        return
    if not TYPICAL_MEAN_HU[0] <= mean_hu <= TYPICAL_MEAN_HU[1]:
        yield Issue.of(
            "liver-hu",
            f"{MASK_FILE} has a mean of {mean_hu:.0f} HU, which is unusual for a liver",
            "check whether the mask is the liver and the CT is in Hounsfield units",
        )
    # centres of body and liver along W, as fractions of the width; W runs from the patient's left to the right (RAS+)
    body: NDArray[Any] = sampled(ct.array_DHW)
    body_W = (body > -200).sum(axis=(0, 1))
    body_centre = float(np.average(np.arange(body_W.size), weights=body_W) / body_W.size) if body_W.any() else 0.5
    liver_W = inside[box].sum(axis=(0, 1))
    liver_centre = (box[2].start + float(np.average(np.arange(liver_W.size), weights=liver_W))) / inside.shape[2]
    if liver_centre < body_centre - MAX_LEFT_OFFSET:
        yield Issue.of(
            "liver-left",
            f"{MASK_FILE} lies in the left half of the body: CT and mask are mirrored, or it is situs inversus",
            "compare with the original series; situs inversus needs no fix",
        )


def _bounding_box(inside: NDArray[np.bool_]) -> tuple[slice, slice, slice]:
    """Return the bounding box of a non-empty mask."""
    slices: list[slice] = []
    for axis in range(3):
        part = inside[tuple(slices)]  # already cropped along the previous axes
        occupied = np.flatnonzero(part.any(axis=tuple(a for a in range(3) if a != axis)))
        slices.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return slices[0], slices[1], slices[2]


def _liver_statistics(array_DHW: NDArray[np.generic], inside: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the fraction of values under a mask that lie in `LIVER_HU`, and the mean of all of them."""
    values: NDArray[Any] = array_DHW[inside]
    fraction = float(((values >= LIVER_HU[0]) & (values <= LIVER_HU[1])).mean())
    return fraction, float(values.mean(dtype=np.float64))


def tilt_degrees(volume: Volume) -> float:
    """Return the largest angle between a grid axis and the nearest patient axis, in degrees."""
    direction = volume.affine_xyz[:3, :3] / np.linalg.norm(volume.affine_xyz[:3, :3], axis=0)
    return float(np.degrees(np.arccos(np.clip(np.abs(direction).max(axis=0), 0.0, 1.0))).max())


def check_mask_name(record: CaseRecord | None) -> Iterator[Issue]:
    """Yield `mask-name` if the import selected a label that the mask names as something else than a liver."""
    if record is not None and record.mask_named_otherwise:
        yield Issue.of(
            "mask-name",
            f"{MASK_FILE} was imported from a label that its mask does not name liver",
            "compare the mask with the CT, and import the case with the label of the liver",
        )


def raise_on_error(issues: Iterable[Issue], case_id: str) -> tuple[Issue, ...]:
    """Return the issues of a case if none is an error.

    Raises:
        InputRejectedError: an issue is an error; carries all that are.
    """
    of_case = tuple(issue.of_case(case_id) for issue in issues)
    if errors := [issue for issue in of_case if issue.severity == "error"]:
        raise InputRejectedError.of(errors)
    return of_case
