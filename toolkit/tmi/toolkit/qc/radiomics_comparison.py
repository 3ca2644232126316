"""Compare a case's radiomics table with features extracted from its CT and mask.

Features depend on the directions of the axes. If the table differs, they are extracted in the axes of other programs
too, and those that explain the difference are named.

F features; a pair of values a, b differs if |a - b| > tolerance * max(|a|, |b|).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from tmi.toolkit.cases.case import MASK_FILE, RADIOMICS_FILE, Case
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.imaging.nifti import open_nifti
from tmi.toolkit.imaging.slab_reader import orientation_of, to_stored_axes
from tmi.toolkit.imaging.volume import Volume
from tmi.toolkit.radiomics.feature_names import FEATURE_NAMES
from tmi.toolkit.radiomics.settings import AXES

TOLERANCE = 1e-6
"""Largest relative difference of two equal values."""
ABSOLUTE_TOLERANCE = 1e-12
"""Absolute difference that is always allowed, for features that are zero up to rounding."""
DICOM_AXES = "LPS"
"""Axes in which SimpleITK reads an axial DICOM series."""
MAX_UNEXPLAINED = 0.05
"""Largest number of differences that other axes leave, relative to all, if they are named as the reason."""
MAX_LISTED_FEATURES = 10
"""Largest number of features that a comparison lists."""


@dataclass(frozen=True, kw_only=True)
class RadiomicsComparison:
    """Differences between one case's table and the extracted features."""

    case_id: str
    """The case."""
    tolerance: float
    """Relative tolerance."""
    compared: int
    """Number of compared features: all of them."""
    differ: int
    """Number of features beyond the tolerance, or with a value on one side only."""
    largest: tuple[tuple[str, float | None], ...]
    """At most ten features with the largest |a - b| / max(|a|, |b|); None if one side has no value."""
    axes: str | None = None
    """Directions of other axes that explain the difference, such as `LPS`; None if none does."""
    axes_differ: int | None = None
    """Number of features beyond the tolerance if the mask's features are extracted in these axes."""

    def to_message(self) -> tuple[str, str]:
        """Return the message and the fix of the finding `radiomics-differ`."""
        name, relative = self.largest[0]
        if self.axes is not None:
            rest = f"all but {self.axes_differ}" if self.axes_differ else "all"
            return (
                f"{self.differ} of {self.compared} features of {RADIOMICS_FILE} differ from those of {MASK_FILE}: they "
                f"were computed in the axes {self.axes}, not {AXES}: in {self.axes} {rest} agree",
                "extract them again with `tmi radiomics --force`, or use tables of the same axes for training and "
                "prediction",
            )
        difference = "has a value on one side only" if relative is None else f"differs most, by {relative:.2g} relative"
        return (
            f"{self.differ} of {self.compared} features of {RADIOMICS_FILE} differ from those of {MASK_FILE}; "
            f"{name} {difference}",
            "extract them again with `tmi radiomics --force`, or check whether the table belongs to another case "
            "or other settings",
        )


def compare_radiomics(
    case: Case, given_F: Float[NDArray[np.float64], "1781"], ct: Volume, mask: Volume, *, tolerance: float = TOLERANCE
) -> RadiomicsComparison:
    """Extract the features from CT and mask and compare the given ones with them.

    Raises:
        UnavailableError: SimpleITK or PyWavelets is not installed.
        InputRejectedError: the mask is too small for texture features (`radiomics-mask`).
    """
    from tmi.toolkit.radiomics.extractor import extract  # SimpleITK is optional and slow to import

    def compare(axes: str) -> RadiomicsComparison:
        computed_F = extract(to_axes(ct, axes), to_axes(mask, axes))
        return compare_features(case.case_id, given_F, computed_F, tolerance=tolerance)

    try:
        comparison = compare(AXES)
        for axes in _other_axes(case) if comparison.differ else ():
            differ = compare(axes).differ
            if differ <= MAX_UNEXPLAINED * comparison.differ:
                return replace(comparison, axes=axes, axes_differ=differ)
    except InputRejectedError as error:
        error.for_case(case.case_id)
        raise
    return comparison


def _other_axes(case: Case) -> tuple[str, ...]:
    """Return the axes in which other programs read the case: of its DICOM series, and of its CT as it is stored."""
    file = open_nifti(case.ct, case_id=case.case_id, kind="ct")
    stored = "".join(map(str, nib.orientations.ornt2axcodes(orientation_of(file))))
    return tuple(dict.fromkeys(axes for axes in (DICOM_AXES, stored) if axes != AXES))


def to_axes(volume: Volume, axes: str) -> Volume:
    """Return a volume with axes that lead to other directions, for example `LPS`: axes are flipped and exchanged.

    Args:
        volume: canonical volume (RAS).
        axes: directions of the axes x, y, z of the result.
    """
    if axes == AXES:
        return volume
    orientation = nib.orientations.axcodes2ornt(tuple(axes))
    array_XYZ = to_stored_axes(volume.array_DHW, orientation)
    steps = [volume.spacing_DHW_mm[2 - int(axis)] for axis in orientation[:, 0]]
    return replace(
        volume, array_DHW=np.ascontiguousarray(array_XYZ.transpose(2, 1, 0)), affine_xyz=np.diag([*steps, 1.0])
    )


def compare_features(
    case_id: str,
    given_F: Float[NDArray[np.float64], "1781"],
    computed_F: Float[NDArray[np.float64], "1781"],
    *,
    tolerance: float,
) -> RadiomicsComparison:
    """Compare two feature vectors; a value that is missing (NaN) on both sides is not a difference."""
    one_sided_F = np.isnan(given_F) != np.isnan(computed_F)
    a_F, b_F = np.nan_to_num(given_F), np.nan_to_num(computed_F)
    with np.errstate(over="ignore"):  # the difference of two huge values of opposite sign overflows to inf
        difference_F = np.abs(a_F - b_F)
    # max(|a|, |b|), bounded from below so that 0 / 0 cannot occur
    scale_F = np.maximum(np.maximum(np.abs(a_F), np.abs(b_F)), np.finfo(np.float64).tiny)
    relative_F = np.where(
        one_sided_F, np.inf, np.where(difference_F <= ABSOLUTE_TOLERANCE, 0.0, difference_F / scale_F)
    )
    largest = np.argsort(-relative_F, kind="stable")[:MAX_LISTED_FEATURES]
    return RadiomicsComparison(
        case_id=case_id,
        tolerance=tolerance,
        compared=len(FEATURE_NAMES),
        differ=int(np.count_nonzero(relative_F > tolerance)),
        largest=tuple(
            (FEATURE_NAMES[i], float(relative_F[i]) if np.isfinite(relative_F[i]) else None)
            for i in largest
            if relative_F[i] > tolerance
        ),
    )
