"""Conversion of stored NIfTI voxels: Hounsfield units of a CT, and integer labels of a mask."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.imaging.nifti import NiftiFile

INT16 = np.iinfo(np.int16)
INTEGER_TOLERANCE = 1e-3
"""Largest allowed distance of a mask's value from an integer; a scaled uint8 deviates by rounding."""


def is_integer(file: NiftiFile) -> bool:
    """Return whether the scaled values are integers; whether they fit int16 is checked slab by slab."""
    scaling = (file.slope, file.intercept)
    return file.dtype.kind in "iu" and all(v == int(v) and abs(v) < 2**31 for v in scaling)


def to_int16_hu(file: NiftiFile, stored: NDArray[np.generic], out: NDArray[np.generic]) -> bool:
    """Write exact HU as int16; return False if a value does not fit."""
    slope, intercept = int(file.slope), int(file.intercept)
    if stored.dtype.newbyteorder("=") == np.int16 and (slope, intercept) == (1, 0):
        np.copyto(out, stored)
        return True
    limits = [int(v) * slope + intercept for v in (stored.min(), stored.max())]
    if min(limits) < INT16.min or max(limits) > INT16.max:
        return False
    # int32 may wrap in between, but the low 16 bits stay correct (arithmetic modulo 2^32) and the results fit int16
    values = stored.astype(np.int32)
    if slope != 1:
        values *= np.int32(slope)
    np.add(values, np.int32(intercept), out=out, casting="unsafe")
    return True


def to_float32_hu(file: NiftiFile, stored: NDArray[np.generic], out: NDArray[np.generic]) -> bool:
    """Write HU as float32.

    Raises:
        InputRejectedError: ct-nan.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # an overflow becomes infinite and is rejected below
        np.copyto(out, scaled(stored, file), casting="same_kind")
    if not np.isfinite(out).all():
        raise InputRejectedError(
            f"{file.name} contains non-finite voxels",
            code="ct-nan",
            case_id=file.case_id,
            fix="export the CT again from its series; NaN voxels have no Hounsfield value",
        )
    return True


def scaled(stored: NDArray[np.generic], file: NiftiFile) -> NDArray[np.generic]:
    """Return stored * slope + intercept in float64, or `stored` itself if the file is unscaled."""
    if (file.slope, file.intercept) == (1.0, 0.0):
        return stored
    with np.errstate(over="ignore", invalid="ignore"):
        values: NDArray[np.float64] = stored.astype(np.float64)
        values *= file.slope
        values += file.intercept
    return values


def integer_labels(stored: NDArray[np.generic], file: NiftiFile) -> NDArray[np.generic]:
    """Return a mask's scaled values, rounded to integers.

    Raises:
        InputRejectedError: mask-nan, mask-values.
    """
    if stored.dtype.kind in "iu" and (file.slope, file.intercept) == (1.0, 0.0):
        return stored
    with np.errstate(over="ignore", invalid="ignore"):
        values = scaled(stored, file).astype(np.float32)
    if not np.isfinite(values).all():
        raise InputRejectedError(
            f"{file.name} contains non-finite voxels",
            code="mask-nan",
            case_id=file.case_id,
            fix="export the mask again as integers",
        )
    rounded = np.rint(values)
    # above 2^24 float32 no longer represents every integer
    if np.abs(values - rounded).max() > INTEGER_TOLERANCE or np.abs(rounded).max() > 2**24:
        raise InputRejectedError(
            f"{file.name} contains fractional values (probabilities or an interpolated mask), not labels",
            code="mask-values",
            case_id=file.case_id,
            fix="export the mask again as integers; resample masks with nearest neighbour",
        )
    return np.asarray(rounded)


def require_int32(values: NDArray[np.generic], file: NiftiFile) -> NDArray[np.generic]:
    """Return integer labels that fit int32.

    Raises:
        InputRejectedError: mask-values: a label would wrap to another one.
    """
    limits = np.iinfo(np.int32)
    if values.size and (int(values.min()) < limits.min or int(values.max()) > limits.max):
        raise InputRejectedError(
            f"{file.name} contains labels beyond 32 bits",
            code="mask-values",
            case_id=file.case_id,
            fix="export the mask again with small integers as labels",
        )
    return values
