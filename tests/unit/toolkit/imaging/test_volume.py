"""Reading CT and mask volumes: orientation, scaling, grids, and rejection of damaged files."""

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
"""Every way to store the axes of one volume: 6 permutations times 8 flips."""


def liver() -> np.ndarray:
    mask = np.zeros(SHAPE_XYZ, dtype=np.uint8)
    mask[1:3, 2:, 1] = 5
    mask[0, 0, 0] = 1
    return mask


def stored_with_layout(array_xyz: np.ndarray, affine: np.ndarray, layout: tuple) -> nib.Nifti1Image:
    """Return the same anatomy with permuted and flipped axes and the affine that describes them."""
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


def rejection(read, code: str) -> InputRejectedError:
    with pytest.raises(InputRejectedError) as error:
        read()
    assert (error.value.code, error.value.case_id) == (code, "P1")
    assert error.value.fix
    return error.value


def test_axes_point_to_superior_anterior_and_right(case):
    """D increases towards superior, H towards anterior, W towards the patient's right."""
    ct = read_ct(case)
    assert ct.array_DHW.shape == (3, 4, 5)
    assert ct.array_DHW[2, 1, 4] == VOXELS_XYZ[4, 1, 2]
    assert ct.spacing_DHW_mm == pytest.approx((2.5, 0.9, 0.7))
    np.testing.assert_allclose(ct.affine_xyz, AFFINE, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_volume_and_mask_are_independent_of_layout(case, layout):
    """All 48 layouts of one anatomy give the same arrays, also if CT and mask are stored differently."""
    nib.save(stored_with_layout(VOXELS_XYZ, AFFINE, layout), case.ct)
    # the mask has another layout than the CT, so only world coordinates can align the two
    nib.save(stored_with_layout(liver(), AFFINE, LAYOUTS[(LAYOUTS.index(layout) + 11) % len(LAYOUTS)]), case.mask)
    ct = read_ct(case)
    mask = read_mask(case, ct)
    np.testing.assert_array_equal(ct.array_DHW, VOXELS_XYZ.transpose(2, 1, 0))
    np.testing.assert_allclose(ct.affine_xyz, AFFINE, atol=1e-5)
    assert ct.spacing_DHW_mm == pytest.approx((2.5, 0.9, 0.7))
    np.testing.assert_array_equal(mask.array_DHW, liver().transpose(2, 1, 0) == 5)
    assert mask.array_DHW.dtype == np.bool_
    assert ct.array_DHW.flags["C_CONTIGUOUS"]


def test_oblique_volume_keeps_array_and_affine(case):
    """An oblique volume is not resampled: its array keeps its values and its affine the rotation."""
    angle = np.radians(12.0)
    rotation = np.eye(4)
    rotation[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    nib.save(stored_with_layout(VOXELS_XYZ, rotation @ AFFINE, ((2, 0, 1), (True, False, True))), case.ct)
    ct = read_ct(case)
    np.testing.assert_array_equal(ct.array_DHW, VOXELS_XYZ.transpose(2, 1, 0))
    np.testing.assert_allclose(ct.affine_xyz, rotation @ AFFINE, atol=1e-5)
    assert ct.spacing_DHW_mm == pytest.approx((2.5, 0.9, 0.7))


def write_bytes(path: Path, data: bytes) -> None:
    with nib.openers.ImageOpener(path, "wb") as stream:
        stream.write(data)


def write_scaled(path: Path, raw: np.ndarray, slope: float, intercept: float) -> None:
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
        ("int16", 0.0, 77.0, "int16"),  # the standard defines slope 0 as unscaled
    ],
)
def test_slope_and_intercept_are_applied_once(case, kind, slope, intercept, expected):
    """Values are stored * slope + intercept; integers that fit int16 are read as int16, all others as float32."""
    raw = np.arange(60).reshape(SHAPE_XYZ).astype(kind)
    write_scaled(case.ct, raw, slope, intercept)
    ct = read_ct(case)
    scaled = raw.astype(np.float64) * slope + intercept if slope else raw.astype(np.float64)
    assert ct.array_DHW.dtype == expected
    np.testing.assert_allclose(ct.array_DHW, scaled.transpose(2, 1, 0), rtol=1e-6)


def test_integers_beyond_int16_are_not_wrapped(case):
    """A CT whose values overflow int16 is read as float32."""
    nib.save(nib.Nifti1Image(VOXELS_XYZ.astype(np.int32) * 1000, AFFINE), case.ct)
    np.testing.assert_array_equal(read_ct(case).array_DHW, VOXELS_XYZ.transpose(2, 1, 0) * 1000.0)


def test_fourth_axis_of_length_one_is_dropped(case):
    """A 4D file with a single volume is read as 3D."""
    nib.save(nib.Nifti1Image(VOXELS_XYZ[..., None], AFFINE), case.ct)
    np.testing.assert_array_equal(read_ct(case).array_DHW, VOXELS_XYZ.transpose(2, 1, 0))


@pytest.mark.parametrize(("label", "count"), [(5, 4), (1, 1), (None, 5)])
def test_mask_label_selects_voxels(case, label, count):
    """A label selects its voxels; without one every non-zero voxel is selected."""
    labelled = Case(folder=case.folder, case_id="P1", mask_label=label)
    assert read_mask(labelled, read_ct(labelled)).array_DHW.sum() == count


def test_mask_without_selected_label_is_rejected(case):
    """A mask without a voxel of the selected label is rejected as empty, and the fix names the option."""
    missing = Case(folder=case.folder, case_id="P1", mask_label=9)
    error = rejection(lambda: read_mask(missing, read_ct(case)), "mask-empty")
    assert "no voxel of label 9" in str(error)
    assert "--mask-label" in error.fix


def test_several_labels_are_joined(case):
    """Several labels select the voxels of all; further ones may be absent, the first one may not."""
    for labels, count in (((5, 1), 5), ((1, 9), 1), ((5, 9, 1), 5)):
        joined = Case(folder=case.folder, case_id="P1", mask_label=labels)
        mask = read_mask(joined, read_ct(joined))
        assert mask.array_DHW.sum() == count
        assert not mask.several_labels
    absent = Case(folder=case.folder, case_id="P1", mask_label=(9, 5))
    assert "no voxel of label 9" in str(rejection(lambda: read_mask(absent, read_ct(case)), "mask-empty"))


def test_mask_is_aligned_by_world_coordinates(case):
    """A mask with the CT's array order but a mirrored affine is mirrored when it is read."""
    mirrored = AFFINE.copy()
    mirrored[0] = [-0.7, 0, 0, -11.0 + 0.7 * 4]
    nib.save(nib.Nifti1Image(liver(), mirrored), case.mask)
    mask = read_mask(case, read_ct(case))
    np.testing.assert_array_equal(mask.array_DHW, liver()[::-1].transpose(2, 1, 0) == 5)


@pytest.mark.parametrize(
    ("shift_mm", "accepted"), [(0.0, True), (0.03, True), (0.05, False), (25.0, False)], ids=lambda v: str(v)
)
def test_mask_shifted_beyond_tolerance_is_rejected(case, shift_mm, accepted):
    """Corners of mask and CT may differ by 0.05 of the smallest voxel edge."""
    affine = AFFINE.copy()
    affine[2, 3] += shift_mm  # the smallest voxel is 0.7 mm: the tolerance is 0.035 mm
    nib.save(nib.Nifti1Image(liver(), affine), case.mask)
    ct = read_ct(case)
    if accepted:
        assert read_mask(case, ct).array_DHW.sum() == 4
    else:
        error = rejection(lambda: read_mask(case, ct), "mask-grid")
        assert "corners up to" in str(error)


def test_mask_of_other_size_is_rejected(case):
    """The message reports both sizes in the order x, y, z of the files."""
    nib.save(nib.Nifti1Image(liver()[:, :, :2], AFFINE), case.mask)
    assert "5x4x2 against 5x4x3 voxels" in str(rejection(lambda: read_mask(case, read_ct(case)), "mask-grid"))


def test_mask_of_other_spacing_is_rejected(case):
    """A mask with the CT's shape and origin but another voxel size is rejected."""
    affine = AFFINE.copy()
    affine[0, 0] = 0.8
    nib.save(nib.Nifti1Image(liver(), affine), case.mask)
    assert corner_distance_mm((3, 4, 5), affine, AFFINE) == pytest.approx(0.4)
    rejection(lambda: read_mask(case, read_ct(case)), "mask-grid")


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
    data[312:328] = bytes(16)  # srow_z = 0: all slices lie in one plane
    data[252:254] = bytes(2)  # qform_code = 0
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
    ("damage", "code"),
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
def test_damaged_file_is_rejected_with_its_code(case, kind, damage, code):
    """A missing, damaged or unsupported file is rejected with the code of its fault, and the message names the file."""
    file = {"ct": case.ct, "mask": case.mask}[kind]
    ct = read_ct(case)
    damage(file)
    error = rejection(lambda: read_ct(case) if kind == "ct" else read_mask(case, ct), f"{kind}-{code}")
    assert file.name in error.what


def test_real_mask_covers_liver_after_relayout(shared_data, tmp_path):
    """A real mask stored with another layout than its CT selects voxels of liver intensity on the patient's right."""
    source = shared_data / "totalsegmentator-ct-3mm"
    image = nib.load(source / "example_seg_fast_force_split.nii.gz")
    nib.save(nib.load(source / "example_ct.nii.gz"), tmp_path / "ct.nii.gz")
    voxels_xyz = np.asarray(image.dataobj).astype(np.uint8)
    relaid = stored_with_layout(voxels_xyz, image.affine, ((2, 0, 1), (False, True, True)))
    nib.save(relaid, tmp_path / "liver.nii.gz")
    case = Case(folder=tmp_path, case_id="P1", mask_label=5)
    ct = read_ct(case)
    mask = read_mask(case, ct)
    assert int(mask.array_DHW.sum()) == 41_692
    inside = ct.array_DHW[mask.array_DHW]
    assert 20 < np.median(inside) < 120
    # the liver is on the patient's right, which is at high W
    assert np.argwhere(mask.array_DHW)[:, 2].mean() > ct.array_DHW.shape[2] / 2
