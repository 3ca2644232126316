"""Faults of a DICOM series, each with the code of the check that must find it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from factories.dicom_series import CORONAL, SeriesSpec, hounsfield_at, make_slices, set_hounsfield, write_slices


@dataclass(frozen=True)
class SeriesFault:
    """One fault of a series."""

    code: str
    """Code of the check in `CHECKS`."""
    slices: Callable[[], list[Dataset]]
    """Builds the slices with the fault."""
    message: str = ""
    """Text that the message must contain."""
    damage: Callable[[Path], None] | None = None
    """Damage to the written files."""

    def write(self, folder: Path) -> Path:
        """Write the series with its fault."""
        write_slices(folder, self.slices(), shuffle=3)
        if self.damage is not None:
            self.damage(folder)
        return folder


def each(change: Callable[[Dataset], None], *, every: int = 1) -> Callable[[], list[Dataset]]:
    """A valid series with a change to every n-th slice."""

    def build() -> list[Dataset]:
        slices = make_slices()
        for data in slices[::every]:
            change(data)
        return slices

    return build


def edited(change: Callable[[list[Dataset]], list[Dataset]]) -> Callable[[], list[Dataset]]:
    """A valid series with a change to the list of slices."""
    return lambda: change(make_slices())


def put(**values: object) -> Callable[[Dataset], None]:
    """Set elements; None removes one."""

    def change(data: Dataset) -> None:
        for name, value in values.items():
            if value is None:
                delattr(data, name)
            else:
                setattr(data, name, value)

    return change


def another(data: Dataset, *, hu: int = 0) -> Dataset:
    """A copy with another UID, its values shifted by `hu`."""
    other = copy.deepcopy(data)
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = generate_uid(
        entropy_srcs=[data.SOPInstanceUID, "again"]
    )
    if hu:
        other.PixelData = (np.frombuffer(data.PixelData, dtype="<i2") + np.int16(hu)).tobytes()
    return other


def alternate_intercepts(data: Dataset) -> None:
    """Store a slice with another intercept and the same HU."""
    pixels = np.frombuffer(data.PixelData, dtype="<i2").astype(np.float64)
    data.RescaleIntercept = -1000.0
    set_hounsfield(data, pixels - 1024)


def without_offset(data: Dataset) -> None:
    data.RescaleIntercept = 0.0


def padded(data: Dataset) -> None:
    pixels = np.frombuffer(data.PixelData, dtype="<i2").reshape(data.Rows, data.Columns).copy()
    pixels[:3] = pixels[-3:] = -2000
    data.PixelPaddingValue = -2000
    data.PixelData = pixels.tobytes()


def uneven(slices: list[Dataset]) -> list[Dataset]:
    spec = SeriesSpec()
    for k in range(12, len(slices)):
        position = 12 + (k - 12) * 1.3
        slices[k].ImagePositionPatient = [float(v) for v in spec.position_of(position)]
        set_hounsfield(slices[k], hounsfield_at(spec.positions_of(position)))
    return slices


def moved(data: Dataset) -> None:
    x, y, z = (float(v) for v in data.ImagePositionPatient)
    data.ImagePositionPatient = [x + 25.0, y, z]


def two_series(slices: list[Dataset]) -> list[Dataset]:
    return slices + make_slices(SeriesSpec(slices=20, series_number=5), seed=1)


def cut(share: float) -> Callable[[Path], None]:
    """Truncate one file to a share of its length."""

    def damage(folder: Path) -> None:
        file = sorted(folder.iterdir())[7]
        data = file.read_bytes()
        file.write_bytes(data[: int(len(data) * share)])

    return damage


SERIES_FAULTS: Mapping[str, SeriesFault] = MappingProxyType(
    {
        "one slice missing": SeriesFault("dicom-missing-slice", edited(lambda s: s[:10] + s[11:]), "1 of 24"),
        "three slices missing": SeriesFault("dicom-missing-slice", edited(lambda s: s[:10] + s[13:]), "3 of 24"),
        "two gaps": SeriesFault("dicom-missing-slice", edited(lambda s: s[:5] + s[6:15] + s[16:]), "2 of 24"),
        "a slice twice": SeriesFault("dicom-duplicate-slice", edited(lambda s: [*s, another(s[4])]), "1 slices"),
        "every slice twice": SeriesFault("dicom-duplicate-slice", edited(lambda s: s + [another(d) for d in s]), "24"),
        "uneven steps": SeriesFault("dicom-nonuniform-spacing", edited(uneven), "between 6 and 7.8 mm"),
        "gantry tilt": SeriesFault("dicom-gantry-tilt", lambda: make_slices(SeriesSpec(tilt_deg=12)), "12.0 degrees"),
        "an extra slice at one position": SeriesFault(
            "dicom-mixed-series", edited(lambda s: [*s, another(s[4], hu=40)]), "at one position"
        ),
        "two kernels": SeriesFault("dicom-mixed-series", each(put(ConvolutionKernel="B70f"), every=2), "kernel"),
        "two thicknesses": SeriesFault("dicom-mixed-series", each(put(SliceThickness=1.5), every=3), "thickness"),
        "two patients": SeriesFault("dicom-mixed-series", each(put(PatientID="P-TWO"), every=5), "patient"),
        "a slice moved sideways": SeriesFault("dicom-mixed-series", edited(lambda s: (moved(s[6]), s)[1]), "plane"),
        "one slice of another orientation": SeriesFault(
            "dicom-mixed-series", each(put(ImageOrientationPatient=list(CORONAL)), every=30), "orientation"
        ),
        "two time points": SeriesFault("dicom-4d", edited(lambda s: s + [another(d, hu=30) for d in s]), "2 different"),
        "intercept by slice": SeriesFault("dicom-rescale-differs", each(alternate_intercepts, every=2)),
        "no slope": SeriesFault("dicom-no-rescale", each(put(RescaleSlope=None)), "24 of 24"),
        "padding": SeriesFault("ct-padding", each(padded), "-3024"),
        "MR": SeriesFault(
            "dicom-not-ct", each(put(Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4")), "MR, 24 images"
        ),
        "planning views only": SeriesFault("dicom-not-ct", each(put(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))),
        "8 bits": SeriesFault("ct-8bit", each(put(BitsStored=8, HighBit=7)), "8-bit"),
        "electron density": SeriesFault("ct-not-hu", each(put(RescaleType="ED")), "rescale type"),
        "offset missing": SeriesFault("ct-offset", each(without_offset)),
        "multi-frame": SeriesFault("dicom-multiframe", each(put(NumberOfFrames=2))),
        "two series": SeriesFault("dicom-series", edited(two_series), "2 CT series"),
        "no position": SeriesFault("dicom-no-geometry", each(put(ImagePositionPatient=None), every=7)),
        "no spacing": SeriesFault("dicom-no-geometry", each(put(PixelSpacing=None))),
        "crooked orientation": SeriesFault("dicom-no-geometry", each(put(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]))),
        "spacing in cm": SeriesFault("ct-spacing", each(put(PixelSpacing=[0.065, 0.06]))),
        "few slices": SeriesFault("ct-few-slices", edited(lambda s: s[8:16]), "8 slices"),
        "one slice": SeriesFault("ct-few-slices", edited(lambda s: s[8:9]), "one position"),
        "video": SeriesFault(
            "dicom-syntax",
            edited(lambda s: s),
            damage=lambda folder: (
                [
                    f.write_bytes(f.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.9.9\0"))
                    for f in folder.iterdir()
                ]
                and None
            ),
        ),
        "pixels cut off": SeriesFault("dicom-unreadable", make_slices, "DICOM file 8", damage=cut(0.7)),
        "header cut off": SeriesFault("dicom-unreadable", make_slices, "DICOM file 8", damage=cut(0.03)),
        "an empty file": SeriesFault("dicom-unreadable", make_slices, "DICOM file 8", damage=cut(0)),
        "absurd size": SeriesFault("dicom-unreadable", each(put(Rows=65535, Columns=65535)), "implausible size"),
    }
)
"""Name of the fault -> fault."""
