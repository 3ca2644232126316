"""Reader of CT series and files: every order, orientation, syntax and format gives the same anatomy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from factories.dicom_series import (
    AXIAL,
    CORONAL,
    OBLIQUE,
    SAGITTAL,
    SeriesSpec,
    compress,
    compress_with_gdcm,
    hounsfield_at,
    make_slices,
    positions_of_volume,
    write_series,
    write_slices,
)
from factories.tmi_command import tmi
from tmi.toolkit.errors import InputRejectedError, UsageError
from tmi.toolkit.imaging.volume import Volume
from tmi.toolkit.ingest.dicom.ct import read_dicom_ct
from tmi.toolkit.ingest.image_files import LoadedCt, read_image_ct

SIDE = SeriesSpec(slices=44, rows=36, columns=40, orientation=CORONAL)
GRIDS = {
    "axial": SeriesSpec(orientation=AXIAL),
    "axial, head to feet": SeriesSpec(orientation=(1, 0, 0, 0, -1, 0)),
    "prone": SeriesSpec(orientation=(-1, 0, 0, 0, -1, 0)),
    "coronal": SIDE,
    "sagittal": SeriesSpec(slices=44, rows=36, columns=40, orientation=SAGITTAL),
    "oblique": SeriesSpec(orientation=OBLIQUE),
    "fractional slope": SeriesSpec(slope=0.5, intercept=-1024.5),
}


def read(folder: Path, series: str | None = None) -> LoadedCt:
    return read_dicom_ct(folder, series=series, fixes=(), case_id="x")


def max_error_hu(volume: Volume) -> float:
    """Return the largest difference in HU between a volume and the anatomy at its voxel positions."""
    expected = hounsfield_at(positions_of_volume(volume.array_DHW.shape, volume.affine_xyz))
    return float(np.abs(expected.astype(np.float64) - volume.array_DHW).max())


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("shuffle", [None, 2])
def test_series_of_any_orientation_is_read_exactly(grid, shuffle, tmp_path):
    """Each voxel holds the anatomy at its position, for every orientation and file order."""
    volume = read(write_series(tmp_path, GRIDS[grid], shuffle=shuffle)).volume
    assert max_error_hu(volume) <= (0.5 if grid == "fractional slope" else 0)
    assert (np.diag(volume.affine_xyz)[:3] > 0).all()
    assert volume.array_DHW.dtype == (np.float32 if grid == "fractional slope" else np.int16)


def deflated(slices: list[Dataset]) -> list[Dataset]:
    for data in slices:
        data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    return slices


def implicit(slices: list[Dataset]) -> list[Dataset]:
    for data in slices:
        data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return slices


SYNTAXES = {
    "JPEG 2000": lambda s: compress(s, JPEG2000Lossless),
    "JPEG-LS": lambda s: compress(s, JPEGLSLossless),
    "RLE": lambda s: compress(s, RLELossless),
    "deflated": deflated,
    "implicit VR": implicit,
}


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_transfer_syntax_does_not_change_voxels(syntax, tmp_path):
    """Every supported transfer syntax gives the same voxels."""
    slices = SYNTAXES[syntax](make_slices(SeriesSpec(slices=6, step_mm=11)))
    assert max_error_hu(read(write_slices(tmp_path, slices)).volume) == 0


def test_jpeg_lossless_does_not_change_voxels(tmp_path):
    """JPEG lossless, which GDCM decodes, gives the same voxels."""
    for k, data in enumerate(make_slices(SeriesSpec(slices=6, step_mm=11))):
        compress_with_gdcm(data, tmp_path / f"{k}.dcm")
    ct = read(tmp_path)
    assert max_error_hu(ct.volume) == 0
    assert "JPEG Lossless" in ct.source["transfer_syntax"][0]


def with_overlay_bits(data: Dataset, *, signed: bool) -> np.ndarray:
    """Store 12 bits of each pixel and fill the 4 bits above them; return the 16 bits of each pixel."""
    stored = np.frombuffer(data.PixelData, dtype="<i2").astype(np.int64) & 0xFFF
    stored |= np.resize([0, 0x1000, 0x5000, 0xF000], stored.shape)
    data.BitsStored, data.HighBit, data.PixelRepresentation = 12, 11, int(signed)
    if signed:  # the same HU from 0 to 2047 and -1024 to -1
        data.RescaleIntercept = 0.0
        stored = (stored & 0xF000) | ((stored - 1024) & 0xFFF)
    return stored.astype("<u2")


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", ["none", "implicit VR", "deflated", "RLE", "JPEG 2000", "JPEG-LS", "JPEG lossless"])
def test_bits_beyond_bits_stored_are_ignored(syntax, signed, tmp_path):
    """Bits above BitsStored are cleared and the sign is extended after every decoder."""
    for k, data in enumerate(make_slices(SeriesSpec(slices=6, step_mm=11))):
        data.PixelData = with_overlay_bits(data, signed=signed).tobytes()
        bits = data.BitsStored, data.HighBit
        data.BitsStored, data.HighBit = 16, 15  # the codestream has all 16 bits
        if syntax == "JPEG lossless":
            compress_with_gdcm(data, tmp_path / f"{k}.dcm")
            data = pydicom.dcmread(tmp_path / f"{k}.dcm")
        elif syntax != "none":
            SYNTAXES[syntax]([data])
        data.BitsStored, data.HighBit = bits
        data.save_as(tmp_path / f"{k}.dcm", enforce_file_format=True)
    assert max_error_hu(read(tmp_path).volume) == 0


@pytest.mark.parametrize("high_bit", [11, 13, 15])
def test_high_bit_places_the_value(high_bit, tmp_path):
    """The value is read from the bits up to HighBit, and bits below it are ignored too."""
    slices = make_slices(SeriesSpec(slices=6, step_mm=11))
    for data in slices:
        stored = with_overlay_bits(data, signed=False).astype(np.int64) & 0xFFF
        shift = high_bit - 11
        data.PixelData = ((stored << shift) | ((1 << shift) - 1)).astype("<u2").tobytes()
        data.HighBit = high_bit
    assert max_error_hu(read(write_slices(tmp_path, slices)).volume) == 0


@pytest.mark.parametrize(("stored", "high_bit"), [(12, 10), (12, 16), (17, 16)])
def test_bits_outside_the_cell_are_rejected(stored, high_bit, tmp_path):
    """A value that does not fit into its cell rejects the file."""
    slices = make_slices(SeriesSpec(slices=6, step_mm=11))
    slices[0].BitsStored, slices[0].HighBit = stored, high_bit
    with pytest.raises(InputRejectedError) as error:
        read(write_slices(tmp_path, slices))
    assert error.value.code == "dicom-unreadable"


@pytest.mark.parametrize("syntax", ["JPEG 2000", "JPEG-LS", "JPEG lossless"])
def test_codestream_of_other_size_is_rejected(syntax, tmp_path):
    """A codestream whose size differs from rows and columns is rejected before decoding."""
    slices = make_slices(SeriesSpec(slices=3, step_mm=11))
    if syntax != "JPEG lossless":
        slices = SYNTAXES[syntax](slices)
    for k, data in enumerate(slices):
        if syntax == "JPEG lossless":
            compress_with_gdcm(data, tmp_path / f"{k}.dcm")
            data = pydicom.dcmread(tmp_path / f"{k}.dcm")
        data.Rows, data.Columns = data.Columns, data.Rows
        data.save_as(tmp_path / f"{k}.dcm", enforce_file_format=True)
    with pytest.raises(InputRejectedError, match="DICOM file 1 ") as error:
        read(tmp_path)
    assert error.value.code == "dicom-unreadable"


def test_files_in_subfolders_without_suffix_are_read(tmp_path):
    """DICOM files are recognised by content, in subfolders too."""
    write_series(tmp_path / "a" / "b")
    for k, file in enumerate(sorted((tmp_path / "a" / "b").iterdir())):
        data = file.read_bytes()
        file.unlink()
        (tmp_path / "a" / f"{k % 3}").mkdir(exist_ok=True)
        (tmp_path / "a" / f"{k % 3}" / f"I{k}").write_bytes(data)
    (tmp_path / "README.txt").write_text("no DICOM")
    ct = read(tmp_path)
    assert max_error_hu(ct.volume) == 0
    assert ct.source["other_files_left_out"] == 1


def test_empty_series_uids_are_grouped_by_geometry(tmp_path):
    """Files with empty UIDs are grouped by their geometry."""
    scan, view = make_slices(), make_slices(SeriesSpec(slices=1, rows=64, columns=64, orientation=CORONAL))
    view[0].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    for data in scan + view:
        data.SeriesInstanceUID = data.StudyInstanceUID = data.SOPInstanceUID = ""
    ct = read(write_slices(tmp_path, scan + view, shuffle=4))
    assert max_error_hu(ct.volume) == 0
    assert ct.source["other_series_left_out"] == 1


def test_localizer_inside_series_is_excluded(tmp_path):
    """A localizer with the series UID is excluded and counted."""
    slices = make_slices()
    view = make_slices(SeriesSpec(slices=1, rows=64, columns=64, orientation=CORONAL))[0]
    view.SeriesInstanceUID, view.ImageType = slices[0].SeriesInstanceUID, ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    ct = read(write_slices(tmp_path, [*slices, view], shuffle=4))
    assert max_error_hu(ct.volume) == 0
    assert ct.source["planning_views_left_out"] == 1


@pytest.fixture(scope="module")
def two_series(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    write_slices(folder / "b", make_slices(SeriesSpec(series_number=2)))
    write_slices(folder / "a", make_slices(SeriesSpec(slices=20, series_number=7), seed=1))
    mr = make_slices(SeriesSpec(slices=5, series_number=1), seed=2)
    for data in mr:
        data.Modality, data.SOPClassUID = "MR", "1.2.840.10008.5.1.4.1.1.4"
    write_slices(folder / "c", mr)
    return folder


def test_several_ct_series_are_rejected_with_list(two_series, tmp_path):
    """Several CT series are rejected, and the message lists all series."""
    outcome = tmi("import", tmp_path / "case", "--ct", two_series)
    assert outcome.code == 3
    assert "found 2 CT series" in outcome.err
    assert "  1: MR, 5 images of 40x60, pixels of 6.5 mm, 6 mm thick, original" in outcome.err
    assert "  2: CT, 24 images of 40x60" in outcome.err
    assert "  3: CT, 20 images of 40x60" in outcome.err
    assert "choose one with --series NUMBER" in outcome.err


def test_series_is_selected_by_number_or_uid(two_series):
    """`series` accepts the number of the listing or the SeriesInstanceUID."""
    uid = make_slices(SeriesSpec(slices=20, series_number=7), seed=1)[0].SeriesInstanceUID
    assert read(two_series, "2").volume.array_DHW.shape[0] == 24
    assert read(two_series, "3").volume.array_DHW.shape[0] == 20
    assert read(two_series, str(uid)).volume.array_DHW.shape[0] == 20


@pytest.mark.parametrize(("wanted", "code"), [("1", "dicom-not-ct"), ("9", "dicom-series"), ("1.2.3", "dicom-series")])
def test_unknown_or_non_ct_series_is_rejected(wanted, code, two_series):
    """A requested series that does not exist or is not a CT is rejected."""
    with pytest.raises(InputRejectedError) as error:
        read(two_series, wanted)
    assert error.value.code == code


def test_original_series_precedes_derived_one(tmp_path):
    """The only original CT series is the default; a derived one alone is accepted."""
    derived = make_slices(SeriesSpec(slices=12), seed=1)
    for data in derived:
        data.ImageType = ["DERIVED", "SECONDARY", "REFORMATTED"]
    write_slices(tmp_path / "a", derived)
    write_slices(tmp_path / "b", make_slices())
    assert read(tmp_path).volume.array_DHW.shape[0] == 24
    assert read(tmp_path / "a").volume.array_DHW.shape[0] == 12


def test_missing_folder_is_a_usage_error(tmp_path):
    """A path that does not exist is a usage error."""
    with pytest.raises(UsageError, match="does not exist"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize("ending", ["nii", "nii.gz", "nrrd", "nhdr", "mha", "mhd"])
@pytest.mark.parametrize("turned", [False, True])
def test_image_file_of_any_format_is_read_exactly(ending, turned, tmp_path):
    """Every image format and voxel order gives the anatomy at its position."""
    spec = GRIDS["oblique"]
    slices = np.stack([hounsfield_at(spec.positions_of(k)) for k in range(spec.slices)])
    row, column = np.array(spec.orientation[:3]), np.array(spec.orientation[3:])
    image = SimpleITK.GetImageFromArray(slices)
    image.SetOrigin([float(v) for v in spec.position_of(0)])
    image.SetSpacing((spec.spacing_mm[1], spec.spacing_mm[0], spec.step_mm))
    image.SetDirection(np.stack([row, column, np.cross(row, column)], axis=1).ravel().tolist())
    if turned:
        image = SimpleITK.PermuteAxes(SimpleITK.Flip(image, [True, False, True]), [2, 0, 1])
    SimpleITK.WriteImage(image, str(tmp_path / f"ct.{ending}"))
    volume = read_image_ct(tmp_path / f"ct.{ending}", case_id="x").volume
    assert max_error_hu(volume) <= 1  # NIfTI keeps float32 geometry
    assert volume.array_DHW.dtype == np.int16


@pytest.mark.parametrize(("kind", "dtype"), [("whole", np.int16), ("fractions", np.float32)])
def test_only_whole_floats_become_int16(kind, dtype, tmp_path):
    """Whole HU are cast to int16, fractions to float32."""
    array = np.linspace(-1000, 1000, 27).reshape(3, 3, 3)
    image = SimpleITK.GetImageFromArray(np.rint(array) if kind == "whole" else array)
    SimpleITK.WriteImage(image, str(tmp_path / "ct.nrrd"))
    assert read_image_ct(tmp_path / "ct.nrrd", case_id="x").volume.array_DHW.dtype == dtype
