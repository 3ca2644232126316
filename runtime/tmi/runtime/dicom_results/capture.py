"""Secondary capture: the slice with most liver, with the outline of the mask, for viewers that show no segmentation."""

from __future__ import annotations

from typing import Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.uid import ExplicitVRLittleEndian

from tmi.runtime.dicom_results.objects import MANUFACTURER, SERIES_NUMBERS, Origin
from tmi.runtime.dicom_results.source import SourceSeries

WINDOW_HU = (-160.0, 240.0)
"""Lowest and highest HU of the grey scale: the soft-tissue window, width 400, level 40."""
OUTLINE_RGB = (255, 176, 0)
"""Colour of the outline; distinguishable from grey with every kind of colour vision."""


def draw_outline(hu: NDArray[np.generic], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Grey picture of a slice with the outline of a mask.

    Args:
        hu: [rows, columns].
        mask: [rows, columns]; its outline is the pixels of the mask with a neighbour outside of it.

    Returns:
        [rows, columns, 3], RGB.
    """
    low, high = WINDOW_HU
    grey = np.clip((hu.astype(np.float64) - low) / (high - low), 0, 1) * 255
    picture = np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=-1)
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    picture[mask & ~inner] = OUTLINE_RGB
    return picture


def make_capture(source: SourceSeries, hu: NDArray[np.generic], mask: NDArray[np.bool_], origin: Origin) -> Any:
    """Secondary capture of the slice with the largest area of the mask.

    Args:
        source: the series.
        hu: [slices, rows, columns] in the order of `source.slices`.
        mask: the same shape.
        origin: what made the object.
    """
    number = int(mask.sum(axis=(1, 2)).argmax())
    slice_ = source.slices[number]
    capture = hd.sc.SCImage.from_ref_dataset(
        ref_dataset=slice_,
        pixel_array=draw_outline(hu[number], mask[number]),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        series_instance_uid=origin.new_uid(),
        series_number=SERIES_NUMBERS["SC"],
        sop_instance_uid=origin.new_uid(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        pixel_spacing=[float(v) for v in slice_.PixelSpacing],
        patient_orientation=_orientation(slice_),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        series_description="TMI liver outline (research use only)",
    )
    capture.BodyPartExamined = "LIVER"  # no paired organ: the series needs no laterality
    return capture


def _orientation(data: Any) -> tuple[str, str]:
    """PatientOrientation: anatomical direction of the rows and of the columns."""
    letters = (("R", "L"), ("A", "P"), ("F", "H"))
    values = [float(v) for v in data.ImageOrientationPatient]
    found = []
    for direction in (values[:3], values[3:]):
        axis = int(np.argmax(np.abs(direction)))
        found.append(letters[axis][direction[axis] > 0])
    return found[0], found[1]
