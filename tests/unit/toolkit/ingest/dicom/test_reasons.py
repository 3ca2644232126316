"""Reasons for which a DICOM series is rejected: the cause and not its symptom, and nothing valid."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from factories.dicom_series import (
    SeriesSpec,
    hounsfield_at,
    make_slices,
    positions_of_volume,
    set_hounsfield,
    write_seg,
    write_slices,
)
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.ingest.dicom import headers, pixels
from tmi.toolkit.ingest.dicom.ct import read_dicom_ct
from tmi.toolkit.ingest.dicom.headers import is_dicom_file
from tmi.toolkit.ingest.image_files import LoadedCt
from tmi.toolkit.ingest.mask_importer import import_mask

SPEC = SeriesSpec(slices=6, step_mm=11)


def read(folder: Path) -> LoadedCt:
    return read_dicom_ct(folder, series=None, fixes=(), case_id="x")


def rejection(folder: Path) -> InputRejectedError:
    with pytest.raises(InputRejectedError) as error:
        read(folder)
    return error.value


def assert_is_anatomy(ct: LoadedCt) -> None:
    volume = ct.volume
    assert np.array_equal(
        hounsfield_at(positions_of_volume(volume.array_DHW.shape, volume.affine_xyz)), volume.array_DHW
    )


FIRST_ELEMENTS = {
    "character set": (),
    "image type": ("SpecificCharacterSet",),
    "storage class": ("SpecificCharacterSet", "ImageType"),
    "study date": ("SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID"),
}


@pytest.mark.parametrize("first", FIRST_ELEMENTS)
@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("suffix", ["", ".dcm"])
def test_series_without_preamble_is_read(first, implicit, suffix, tmp_path):
    """A data set without preamble and meta header is read, whatever its first element, encoding and file name."""
    for k, data in enumerate(make_slices(SPEC)):
        del data.file_meta
        data.SpecificCharacterSet = "ISO_IR 100"
        for name in FIRST_ELEMENTS[first]:
            delattr(data, name)
        data.save_as(tmp_path / f"{k}{suffix}", implicit_vr=implicit, little_endian=True)
    assert_is_anatomy(read(tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08\x00",
        b"\x08\x00\x05\x00" + b"\xff\xff\xff\x7f" + b"text" * 20,
        b"\x08\x00\x05\x00\x02\x00\x00\x00ab\x08\x00\x01\x00\x02\x00\x00\x00ab" + b"\0" * 20,
        b"PK\x03\x04" + b"\0" * 200,
        b"II*\x00\x08\x00\x00\x00" + b"\0" * 200,
        b"\x00" * 300,
    ],
    ids=["empty", "two bytes", "length beyond the file", "descending tags", "zip", "TIFF", "zeros"],
)
def test_other_files_are_no_dicom(content, tmp_path):
    """Files of other formats are not taken for DICOM."""
    (tmp_path / "file").write_bytes(content)
    assert not is_dicom_file(tmp_path / "file")


def as_enhanced(data: Dataset, *, frames: int | None) -> None:
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    for name in ("RescaleSlope", "RescaleIntercept", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(data, name)
    if frames is not None:
        data.NumberOfFrames = frames


@pytest.mark.parametrize("frames", [12, 1, None])
def test_enhanced_ct_is_rejected_as_multiframe(frames, tmp_path):
    """Enhanced CT keeps rescale and geometry elsewhere: the reason is its kind, for one frame and for many."""
    data = make_slices(SPEC)[0]
    as_enhanced(data, frames=frames)
    error = rejection(write_slices(tmp_path, [data]))
    assert error.code == "dicom-multiframe"
    assert "slope" not in f"{error} {error.fix}"


@pytest.mark.parametrize("missing", ["ImagePositionPatient", "PixelSpacing"])
def test_colour_and_geometry_come_before_the_rescale(missing, tmp_path):
    """An image that is no slice of a CT is not rejected for its missing slope."""
    slices = make_slices(SPEC)
    for data in slices:
        del data.RescaleSlope
        delattr(data, missing)
    assert rejection(write_slices(tmp_path / "a", slices)).code == "dicom-no-geometry"
    for data in slices:
        data.SamplesPerPixel = 3
    assert rejection(write_slices(tmp_path / "b", slices)).code == "ct-8bit"


@pytest.mark.parametrize("uid", ["same", "empty"])
def test_rounded_thickness_is_one_series(uid, tmp_path):
    """Slices whose thickness is rounded differently are one series, with and without a series UID."""
    slices = make_slices(SPEC)
    for k, data in enumerate(slices):
        data.SliceThickness = (11.0, 10.9999, "11.004")[k % 3]
        if uid == "empty":
            data.SeriesInstanceUID = ""
    assert_is_anatomy(read(write_slices(tmp_path, slices)))


@pytest.mark.parametrize("thickness", [11.1, None])
def test_other_thickness_is_two_series(thickness, tmp_path):
    """A thickness that differs by more than rounding, or is missing on some slices, mixes two series."""
    slices = make_slices(SPEC)
    slices[2].SliceThickness = thickness
    error = rejection(write_slices(tmp_path, slices))
    assert error.code == "dicom-mixed-series"
    assert "slice thickness" in str(error)


def test_blocks_of_two_thicknesses_are_one_series(tmp_path):
    """A series of 4 and 7 mm is one with uneven steps, which can be repaired; it is no mixture."""
    spec = SeriesSpec(slices=40, step_mm=4.0)
    places = [*range(20), *(19 + 1.75 * k for k in range(1, 12))]
    slices = make_slices(spec)[: len(places)]
    for k, (data, place) in enumerate(zip(slices, places, strict=True)):
        data.SliceThickness = 4.0 if k < 20 else 7.0
        data.ImagePositionPatient = [float(v) for v in spec.position_of(place)]
        set_hounsfield(data, hounsfield_at(spec.positions_of(place)))
    write_slices(tmp_path, slices, shuffle=1)
    assert rejection(tmp_path).code == "dicom-nonuniform-spacing"
    read_dicom_ct(tmp_path, series=None, fixes=["dicom-nonuniform-spacing"], case_id="x")


@pytest.mark.parametrize("thick", [lambda k: k % 3 == 0, lambda k: k >= 3], ids=["interleaved", "same step"])
def test_thickness_without_its_step_is_two_series(thick, tmp_path):
    """Slices of another thickness between the others, or with the same step, are two series."""
    slices = make_slices(SPEC)
    for k, data in enumerate(slices):
        data.SliceThickness = 5.0 if thick(k) else 11.0
    assert rejection(write_slices(tmp_path, slices)).code == "dicom-mixed-series"


def test_secondary_capture_is_named(tmp_path):
    """A CT stored as secondary capture is rejected for its storage class, not as another modality."""
    slices = make_slices(SPEC)
    for data in slices:
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    error = rejection(write_slices(tmp_path, slices))
    assert error.code == "dicom-not-ct"
    assert "stored as secondary capture" in str(error)


def failing(code: int, only: Callable[[Path], bool]) -> Callable[..., object]:
    def fail(path: Path, **options: object) -> object:
        if only(path):
            raise OSError(code, "Permission denied" if code == errno.EACCES else "Input/output error", str(path))
        return headers_open(path, **options)

    headers_open = headers.open_dicom
    return fail


@pytest.mark.parametrize("module", [headers, pixels], ids=["header", "pixels"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_file_that_cannot_be_opened_is_not_damaged(module, code, tmp_path, monkeypatch):
    """A permission or device error is reported as such, with the number of the file and without its name."""
    write_slices(tmp_path, make_slices(SPEC))
    monkeypatch.setattr(module, "open_dicom", failing(code, lambda path: path.name == "IM0003.dcm"))
    error = rejection(tmp_path)
    assert error.code == "case-unreadable"
    assert "DICOM file 4 (in sorted path order) cannot be opened" in str(error)
    assert "damaged" not in f"{error} {error.fix}"
    assert "IM0003" not in str(error)


def test_folder_that_cannot_be_listed_is_not_left_out(tmp_path, monkeypatch):
    """A sub-folder without permission rejects the series: its slices would be missing."""
    write_slices(tmp_path / "a", make_slices(SPEC)[:4])
    write_slices(tmp_path / "b", make_slices(SPEC)[4:])
    listed = Path.iterdir

    def iterdir(path: Path) -> object:
        if path.name == "b":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    error = rejection(tmp_path)
    assert (error.code, "Permission denied" in str(error)) == ("case-unreadable", True)


def test_linked_folders_are_followed_once(tmp_path):
    """Links to folders are followed; loops and second links to a folder add nothing."""
    write_slices(tmp_path / "archive" / "a", make_slices(SPEC)[:3])
    write_slices(tmp_path / "archive" / "b", make_slices(SPEC)[3:])
    case = tmp_path / "case"
    case.mkdir()
    for name, target in {"one": "archive/a", "two": "archive/b", "again": "archive/a", "loop": "case"}.items():
        (case / name).symlink_to(tmp_path / target, target_is_directory=True)
    assert_is_anatomy(read(case))


def test_seg_that_cannot_be_opened_is_not_damaged(tmp_path, monkeypatch):
    """A SEG that cannot be opened when its frames are read is reported as such."""
    slices = make_slices()
    ct = read(write_slices(tmp_path / "ct", slices))
    mask = np.zeros((len(slices), slices[0].Rows, slices[0].Columns), dtype=bool)
    mask[5:9, 5:9, 5:9] = True
    path = write_seg(tmp_path / "seg.dcm", slices, [mask], ["hepar"])

    def segread(path: Path) -> object:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("highdicom.seg.segread", segread)
    with pytest.raises(InputRejectedError, match="cannot be opened") as error:
        import_mask(path, ct, wanted=None, fixes=(), case_id="x")
    assert error.value.code == "case-unreadable"


def test_mask_that_cannot_be_opened_is_not_damaged(tmp_path, monkeypatch):
    """A DICOM mask without permission is reported as such."""
    ct = read(write_slices(tmp_path / "ct", make_slices()))
    path = tmp_path / "ct" / "IM0003.dcm"
    module = "tmi.toolkit.ingest.mask_importer.open_dicom"
    monkeypatch.setattr(module, failing(errno.EACCES, lambda file: file == path))
    with pytest.raises(InputRejectedError, match=r"the mask file cannot be opened \(Permission denied\)") as error:
        import_mask(path, ct, wanted=None, fixes=(), case_id="x")
    assert error.value.code == "case-unreadable"
