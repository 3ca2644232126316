"""Reading volumes: one anatomy gives one array however its file is laid out, and the mask lands on it."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tmi.toolkit.cases.case import Case
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.imaging.volume import corner_distance_mm, read_ct, read_mask

SHAPE_XYZ = (5, 4, 3)
AFFINE = np.array([[0.7, 0, 0, -11.0], [0, 0.9, 0, 5.0], [0, 0, 2.5, -40.0], [0, 0, 0, 1.0]])
VOXELS_XYZ = np.arange(60, dtype=np.int16).reshape(SHAPE_XYZ) * 7 - 200
LAYOUTS = [
    (axes, flips) for axes in itertools.permutations(range(3)) for flips in itertools.product((False, True), repeat=3)
]
"""Every way to store the axes of one volume: 6 orders times 8 flips."""


def liver() -> np.ndarray:
    mask = np.zeros(SHAPE_XYZ, dtype=np.uint8)
    mask[1:3, 2:, 1] = 5
    mask[0, 0, 0] = 1
    return mask


def laid_out(array_xyz: np.ndarray, affine: np.ndarray, layout: tuple) -> nib.Nifti1Image:
    """The same anatomy stored with its axes permuted and flipped, and the affine that says so."""
    axes, flips = layout
    to_old = np.zeros((4, 4))
    to_old[3, 3] = 1
    for new, (old, flip) in enumerate(zip(axes, flips, strict=True)):
        to_old[old, new] = -1 if flip else 1
        to_old[old, 3] = array_xyz.shape[old] - 1 if flip else 0
    stored = array_xyz.transpose(axes)[tuple(slice(None, None, -1 if f else 1) for f in flips)]
    return nib.Nifti1Image(np.ascontiguousarray(stored), affine @ to_old)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    nib.save(nib.Nifti1Image(VOXELS_XYZ, AFFINE), tmp_path / "ct.nii.gz")
    nib.save(nib.Nifti1Image(liver(), AFFINE), tmp_path / "liver.nii.gz")
    return Case(folder=tmp_path, case_id="P1", mask_label=5)


def refused(read, code: str) -> InputRejectedError:
    with pytest.raises(InputRejectedError) as error:
        read()
    assert (error.value.code, error.value.case_id) == (code, "P1")
    assert error.value.fix
    return error.value


def test_depth_is_superior_height_anterior_and_width_the_patients_right(case):
    ct = read_ct(case)
    assert ct.array_DHW.shape == (3, 4, 5)
    assert ct.array_DHW[2, 1, 4] == VOXELS_XYZ[4, 1, 2]
    assert ct.spacing_DHW_mm == pytest.approx((2.5, 0.9, 0.7))
    np.testing.assert_allclose(ct.affine_xyz, AFFINE, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_layout_of_one_anatomy_gives_the_same_volume_and_the_mask_lands_on_it(case, layout):
    nib.save(laid_out(VOXELS_XYZ, AFFINE, layout), case.ct)
    # the mask is stored in yet another layout: only world coordinates can bring the two together
    nib.save(laid_out(liver(), AFFINE, LAYOUTS[(LAYOUTS.index(layout) + 11) % len(LAYOUTS)]), case.mask)
    ct = read_ct(case)
    mask = read_mask(case, ct)
    np.testing.assert_array_equal(ct.array_DHW, VOXELS_XYZ.transpose(2, 1, 0))
    np.testing.assert_allclose(ct.affine_xyz, AFFINE, atol=1e-5)
    assert ct.spacing_DHW_mm == pytest.approx((2.5, 0.9, 0.7))
    np.testing.assert_array_equal(mask.array_DHW, liver().transpose(2, 1, 0) == 5)
    assert mask.array_DHW.dtype == np.bool_
    assert ct.array_DHW.flags["C_CONTIGUOUS"]


def test_a_tilted_volume_keeps_its_array_and_its_tilt(case):
    angle = np.radians(12.0)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    nib.save(laid_out(VOXELS_XYZ, turn @ AFFINE, ((2, 0, 1), (True, False, True))), case.ct)
    ct = read_ct(case)
    np.testing.assert_array_equal(ct.array_DHW, VOXELS_XYZ.transpose(2, 1, 0))
    np.testing.assert_allclose(ct.affine_xyz, turn @ AFFINE, atol=1e-5)
    assert ct.spacing_DHW_mm == pytest.approx((2.5, 0.9, 0.7))


def write_bytes(path: Path, data: bytes) -> None:
    with nib.openers.ImageOpener(path, "wb") as stream:
        stream.write(data)


def stored_as(path: Path, raw: np.ndarray, slope: float, intercept: float) -> None:
    data = bytearray(nib.Nifti1Image(raw, AFFINE).to_bytes())
    data[112:120] = struct.pack("<ff", slope, intercept)
    write_bytes(path, bytes(data))


@pytest.mark.parametrize(
    ("kind", "slope", "intercept", "expected"),
    [
        ("int16", 1.0, 0.0, "int16"),
        ("uint16", 1.0, -1024.0, "int16"),
        ("int32", 1.0, -1024.0, "int16"),
        ("uint8", 2.0, -100.0, "int16"),
        ("int16", 0.5, -10.0, "float32"),
        ("float32", 1.0, 0.0, "float32"),
        ("float64", 2.0, 1.0, "float32"),
        ("int32", 1000.0, 0.0, "float32"),
        ("int16", 0.0, 77.0, "int16"),  # slope 0 means: not scaled
    ],
)
def test_slope_and_intercept_are_applied_once_and_whole_numbers_stay_whole(case, kind, slope, intercept, expected):
    raw = np.arange(60).reshape(SHAPE_XYZ).astype(kind)
    stored_as(case.ct, raw, slope, intercept)
    ct = read_ct(case)
    truth = raw.astype(np.float64) * slope + intercept if slope else raw.astype(np.float64)
    assert ct.array_DHW.dtype == expected
    np.testing.assert_allclose(ct.array_DHW, truth.transpose(2, 1, 0), rtol=1e-6)


def test_integers_beyond_int16_are_not_wrapped(case):
    nib.save(nib.Nifti1Image(VOXELS_XYZ.astype(np.int32) * 1000, AFFINE), case.ct)
    np.testing.assert_array_equal(read_ct(case).array_DHW, VOXELS_XYZ.transpose(2, 1, 0) * 1000.0)


def test_a_fourth_axis_of_length_one_is_dropped(case):
    nib.save(nib.Nifti1Image(VOXELS_XYZ[..., None], AFFINE), case.ct)
    np.testing.assert_array_equal(read_ct(case).array_DHW, VOXELS_XYZ.transpose(2, 1, 0))


@pytest.mark.parametrize(("label", "count"), [(5, 4), (1, 1), (None, 5)])
def test_the_label_selects_the_voxels_and_no_label_takes_all(case, label, count):
    chosen = Case(folder=case.folder, case_id="P1", mask_label=label)
    assert read_mask(chosen, read_ct(chosen)).array_DHW.sum() == count


def test_a_mask_without_the_label_is_empty(case):
    missing = Case(folder=case.folder, case_id="P1", mask_label=9)
    error = refused(lambda: read_mask(missing, read_ct(case)), "mask-empty")
    assert "no voxel of label 9" in str(error)
    assert "--mask-label" in error.fix


def test_a_mask_is_compared_by_world_coordinates_and_never_by_array_order(case):
    """The mask's array has the CT's shape and order, but its affine says that it is mirrored."""
    mirrored = AFFINE.copy()
    mirrored[0] = [-0.7, 0, 0, -11.0 + 0.7 * 4]
    nib.save(nib.Nifti1Image(liver(), mirrored), case.mask)
    mask = read_mask(case, read_ct(case))
    np.testing.assert_array_equal(mask.array_DHW, liver()[::-1].transpose(2, 1, 0) == 5)


@pytest.mark.parametrize(
    ("shift_mm", "accepted"), [(0.0, True), (0.03, True), (0.05, False), (25.0, False)], ids=lambda v: str(v)
)
def test_a_mask_further_off_than_the_tolerance_is_refused(case, shift_mm, accepted):
    affine = AFFINE.copy()
    affine[2, 3] += shift_mm  # the smallest voxel is 0.7 mm: the tolerance is 0.035 mm
    nib.save(nib.Nifti1Image(liver(), affine), case.mask)
    ct = read_ct(case)
    if accepted:
        assert read_mask(case, ct).array_DHW.sum() == 4
    else:
        error = refused(lambda: read_mask(case, ct), "mask-grid")
        assert "corners up to" in str(error)


def test_a_mask_of_another_size_is_refused_with_both_sizes_in_the_files_order(case):
    nib.save(nib.Nifti1Image(liver()[:, :, :2], AFFINE), case.mask)
    assert "(5x4x2 against 5x4x3 voxels)" in str(refused(lambda: read_mask(case, read_ct(case)), "mask-grid"))


def test_a_mask_of_another_spacing_is_refused_although_its_origin_fits(case):
    affine = AFFINE.copy()
    affine[0, 0] = 0.8
    nib.save(nib.Nifti1Image(liver(), affine), case.mask)
    assert corner_distance_mm((3, 4, 5), affine, AFFINE) == pytest.approx(0.4)
    refused(lambda: read_mask(case, read_ct(case)), "mask-grid")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:120])


def _text(path: Path) -> None:
    path.write_text("no image")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _series(path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((*SHAPE_XYZ, 2), dtype=np.int16), AFFINE), path)


def _plane(path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((5, 4), dtype=np.int16), AFFINE), path)


def _flat_affine(path: Path) -> None:
    data = bytearray(nib.Nifti1Image(VOXELS_XYZ, AFFINE).to_bytes())
    data[312:328] = bytes(16)  # srow_z: the slices lie on one another
    data[252:254] = bytes(2)  # no qform
    write_bytes(path, bytes(data))


def _nan(path: Path) -> None:
    array = VOXELS_XYZ.astype(np.float32)
    array[1, 1, 1] = np.nan
    nib.save(nib.Nifti1Image(array, AFFINE), path)


def _infinite(path: Path) -> None:
    array = VOXELS_XYZ.astype(np.float32)
    array[1, 1, 1] = -np.inf
    nib.save(nib.Nifti1Image(array, AFFINE), path)


def _complex(path: Path) -> None:
    nib.save(nib.Nifti1Image(VOXELS_XYZ.astype(np.complex64), AFFINE), path)


def _colour(path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros(SHAPE_XYZ, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]), AFFINE), path)


def _huge(path: Path) -> None:
    data = bytearray(nib.Nifti1Image(VOXELS_XYZ, AFFINE).to_bytes())
    data[42:48] = struct.pack("<hhh", 32767, 32767, 32767)
    write_bytes(path, bytes(data))


@pytest.mark.parametrize("kind", ["ct", "mask"])
@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (Path.unlink, "missing"),
        (_cut, "unreadable"),
        (_text, "unreadable"),
        (_empty, "unreadable"),
        (_complex, "unreadable"),
        (_colour, "unreadable"),
        (_huge, "unreadable"),
        (_series, "not-3d"),
        (_plane, "not-3d"),
        (_flat_affine, "affine"),
        (_nan, "nan"),
        (_infinite, "nan"),
    ],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_what_is_no_volume_is_refused_with_its_code_and_its_file(case, kind, spoil, code):
    file = {"ct": case.ct, "mask": case.mask}[kind]
    ct = read_ct(case)
    spoil(file)
    error = refused(lambda: read_ct(case) if kind == "ct" else read_mask(case, ct), f"{kind}-{code}")
    assert file.name in error.what


def test_a_real_mask_lands_on_the_liver_whatever_its_layout(shared_data, tmp_path):
    source = shared_data / "totalsegmentator-ct-3mm"
    image = nib.load(source / "example_seg_fast_force_split.nii.gz")
    nib.save(nib.load(source / "example_ct.nii.gz"), tmp_path / "ct.nii.gz")
    turned = laid_out(np.asarray(image.dataobj).astype(np.uint8), image.affine, ((2, 0, 1), (False, True, True)))
    nib.save(turned, tmp_path / "liver.nii.gz")
    case = Case(folder=tmp_path, case_id="P1", mask_label=5)
    ct = read_ct(case)
    mask = read_mask(case, ct)
    assert int(mask.array_DHW.sum()) == 41_692
    inside = ct.array_DHW[mask.array_DHW]
    assert 20 < np.median(inside) < 120
    # the patient's right lies at high W, and the liver on the right
    assert np.argwhere(mask.array_DHW)[:, 2].mean() > ct.array_DHW.shape[2] / 2
