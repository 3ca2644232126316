"""`tmi import` reads NIfTI by the rules of `tmi check`: geometry, scaling, unit."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tmi.toolkit.cases.case import Case
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.imaging.volume import read_ct, read_labels
from tmi.toolkit.ingest.case_importer import import_case
from tmi.toolkit.ingest.image_files import read_image

AFFINE = np.array([[5.0, 0, 0, -150], [0, 5.0, 0, -150], [0, 0, 6.0, -60], [0, 0, 0, 1]])


def body() -> np.ndarray:
    """HU [x, y, z] of an ellipse of soft tissue in air."""
    x, y, _ = np.meshgrid(np.arange(60), np.arange(60), np.arange(16), indexing="ij")
    inside = ((x - 30) / 26) ** 2 + ((y - 30) / 20) ** 2 < 1
    noise = np.random.default_rng(3).normal(0, 9, inside.shape)
    return np.where(inside, 60 + noise, -1000).round().astype(np.int16)


def save(path: Path, array: np.ndarray, edit=lambda image: None, patch: dict[int, bytes] | None = None) -> Path:
    """Write an image; `patch` overwrites bytes of the header, offset -> value."""
    image = nib.Nifti1Image(array, AFFINE)
    edit(image)
    data = bytearray(image.to_bytes())
    for offset, value in (patch or {}).items():
        data[offset : offset + len(value)] = value
    path.write_bytes(gzip.compress(bytes(data)) if path.name.endswith(".gz") else bytes(data))
    return path


def mirror_qform(image: nib.Nifti1Image) -> None:
    image.set_sform(AFFINE, 2)
    image.set_qform(AFFINE @ np.diag([-1.0, 1, 1, 1]), 1)


def scale_qform(image: nib.Nifti1Image) -> None:
    image.set_sform(AFFINE, 1)
    image.set_qform(AFFINE @ np.diag([1.2, 1, 1, 1]), 1)


SHEARED = AFFINE @ np.array([[1, 0, 0, 0], [0, 1, 0.4, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
"""Affine of a gantry tilt."""


def sheared(qform: np.ndarray):
    """Set a sheared sform beside a qform, which cannot be sheared."""

    def edit(image: nib.Nifti1Image) -> None:
        image.set_sform(SHEARED, 1)
        image.set_qform(qform, 1)

    return edit


mirror_qform_of_tilt = sheared(AFFINE @ np.diag([-1.0, 1, 1, 1]))
scale_qform_of_tilt = sheared(AFFINE @ np.diag([1.6, 1.6, 1, 1]))


def scale_pixdim(image: nib.Nifti1Image) -> None:
    image.set_sform(AFFINE, 1)
    image.set_qform(None, 0)
    image.header["pixdim"][1:4] = (5, 5, 5)


def no_codes(image: nib.Nifti1Image) -> None:
    image.set_sform(None, 0)
    image.set_qform(None, 0)


@pytest.mark.parametrize("kind", ["ct", "mask"])
@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (mirror_qform, "forms"),
        (scale_qform, "forms"),
        (mirror_qform_of_tilt, "forms"),
        (scale_qform_of_tilt, "forms"),
        (scale_pixdim, "forms"),
        (no_codes, "affine"),
    ],
)
def test_import_and_case_reader_reject_alike(kind, ending, edit, code, tmp_path):
    """Contradictory or missing forms are rejected by the import with the code that `tmi check` gives the raw file."""
    path = save(tmp_path / f"SECRET.{ending}", body(), edit)
    with pytest.raises(InputRejectedError) as imported:
        read_image(path, kind=kind, case_id="P1")
    assert imported.value.code == f"{kind}-{code}"
    assert "SECRET" not in str(imported.value)
    case = Case(folder=tmp_path, case_id="P1")
    file = {"ct": case.ct, "mask": case.mask}[kind]
    save(file, body(), edit)
    with pytest.raises(InputRejectedError) as checked:
        read_ct(case) if kind == "ct" else read_labels(case)
    assert checked.value.code == imported.value.code


@pytest.mark.parametrize("qform", [AFFINE, SHEARED])
def test_sheared_sform_agrees_with_its_rotation(qform, tmp_path):
    """A sheared sform (gantry tilt) is read although the qform beside it has no shear."""
    path = save(tmp_path / "ct.nii", body(), sheared(qform))
    np.testing.assert_allclose(read_image(path, kind="ct", case_id="P1").volume.affine_xyz, SHEARED, atol=1e-5)


def test_undefined_pixdim_is_no_contradiction(tmp_path):
    """Sizes of 0 in `pixdim` say nothing, so the sform holds alone."""
    path = save(tmp_path / "ct.nii", body(), scale_pixdim, patch={80: bytes(12)})
    np.testing.assert_allclose(read_image(path, kind="ct", case_id="P1").volume.affine_xyz, AFFINE)


@pytest.mark.parametrize(("slope", "is_read"), [(np.nan, False), (np.inf, False), (0.0, True)])
def test_intercept_beside_a_slope_that_is_not_finite(slope, is_read, tmp_path):
    """Programs apply or ignore such an intercept, so the file is rejected; slope 0 means unscaled by the standard."""
    path = save(tmp_path / "ct.nii", body(), patch={112: struct.pack("<ff", slope, -40.0)})
    if is_read:
        read_image(path, kind="ct", case_id="P1")
        return
    with pytest.raises(InputRejectedError) as error:
        read_image(path, kind="ct", case_id="P1")
    assert error.value.code == "ct-unreadable"


@pytest.mark.parametrize(
    ("slope", "intercept", "offset"), [(1.0, -40.0, 40), (1.0, -1024.0, 1024), (2.0, 10.0, None), (0.0, 77.0, 0)]
)
@pytest.mark.parametrize("kind", [np.int16, np.int32, np.float32])
def test_slope_and_intercept_reach_the_written_case(kind, slope, intercept, offset, tmp_path):
    """HU are stored * slope + intercept, as other readers compute them, in the written case too; slope 0 is none."""
    hu = body() // 2 * 2
    stored = ((hu - 10) / 2 if offset is None else hu + offset).astype(kind)
    path = save(tmp_path / "ct.nii.gz", stored, patch={112: struct.pack("<ff", slope, intercept)})
    written = import_case(tmp_path / "case", ct=path).case
    np.testing.assert_array_equal(np.asarray(nib.load(written.ct).dataobj), np.asarray(nib.load(path).dataobj))
    np.testing.assert_array_equal(np.asarray(nib.load(written.ct).dataobj), hu)
    assert nib.load(written.ct).get_data_dtype() == np.int16


def test_other_unit_is_reported_before_it_is_lost(tmp_path):
    """A header in metres with sizes in millimetres is imported with the finding `ct-unit`; the case declares mm."""
    path = save(tmp_path / "ct.nii.gz", body(), lambda image: image.header.set_xyzt_units("meter"))
    done = import_case(tmp_path / "case", ct=path)
    assert [f.code for f in done.findings] == ["ct-unit"]
    assert nib.load(done.case.ct).header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
@pytest.mark.parametrize("change", [-1, 1])
def test_nifti_of_other_length_is_rejected(ending, change, tmp_path):
    """A stream that is shorter or longer than its header declares is rejected."""
    data = nib.Nifti1Image(body(), AFFINE).to_bytes()
    data = data[:change] if change < 0 else data + b"\0"
    path = tmp_path / f"ct.{ending}"
    path.write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    with pytest.raises(InputRejectedError) as error:
        read_image(path, kind="ct", case_id="P1")
    assert error.value.code == "ct-unreadable"


def test_label_beyond_32_bits_does_not_wrap(tmp_path):
    """A label that does not fit 32 bits is rejected; it would become another label."""
    labels = np.zeros((4, 4, 4), dtype=np.int64)
    labels[1] = 2**32 + 5
    image = nib.Nifti1Image(labels, AFFINE, dtype=np.int64)
    nib.save(image, tmp_path / "mask.nii.gz")
    with pytest.raises(InputRejectedError) as error:
        read_image(tmp_path / "mask.nii.gz", kind="mask", case_id="P1")
    assert error.value.code == "mask-values"
