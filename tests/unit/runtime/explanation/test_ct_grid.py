"""Maps are written on the grid of the CT file: every orientation, spacing and shape, without a flip."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest

from tmi.toolkit.cases.case import Case
from tmi.toolkit.config.schema import CtConfig
from tmi.toolkit.imaging.ct_resampling import prepare_ct, resample_to_ct_grid
from tmi.toolkit.imaging.volume import PLANES, Volume, read_ct, write_on_ct_grid

ORIENTATIONS = [
    "".join(signs[axis] for axis in order)
    for order in itertools.permutations(range(3))
    for signs in itertools.product("RL", "AP", "SI")
]


def store(folder, orientation: str) -> Case:
    """Write an oblique CT in which every voxel has a unique value."""
    array = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)
    c, s = np.cos(0.1), np.sin(0.1)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) * [1.5, 2.0, 3.0]
    affine[:3, 3] = [-10, 20, 30]
    image = nib.Nifti1Image(array, affine)
    transform = nib.orientations.ornt_transform(
        nib.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(orientation))
    )
    nib.save(image.as_reoriented(transform), folder / "ct.nii.gz")
    return Case(folder=folder, case_id="P1")


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_written_map_matches_the_ct_file(orientation, tmp_path):
    """Values read from a CT and written on its grid equal the file's, in all 48 orientations."""
    case = store(tmp_path, orientation)
    write_on_ct_grid(read_ct(case).array_DHW.astype(np.float32), case, tmp_path / "map.nii.gz")
    ct, written = nib.load(case.ct), nib.load(tmp_path / "map.nii.gz")
    assert np.array_equal(written.get_fdata(), ct.get_fdata())
    assert np.allclose(written.affine, ct.affine, atol=1e-4)
    assert nib.aff2axcodes(written.affine) == tuple(orientation)
    assert written.get_data_dtype() == np.float32


def test_map_of_other_shape_is_rejected(tmp_path):
    """A map with another shape than the CT is rejected."""
    case = store(tmp_path, "LPS")
    with pytest.raises(ValueError, match="on a CT of shape"):
        write_on_ct_grid(np.zeros((5, 6, 7), np.float32), case, tmp_path / "map.nii.gz")


@pytest.mark.parametrize("depth", ["linear", "nearest"])
@pytest.mark.parametrize("shape", [(20, 30, 26), (8, 12, 10), (33, 9, 40)])
def test_resampled_blob_keeps_its_centre(shape, depth):
    """A smooth blob that is preprocessed and resampled back keeps its centre within a fraction of the coarser grid's
    voxel.
    """
    config = CtConfig(shape_DHW=(16, 16, 16), depth_resampling=depth)
    axes = [np.arange(n) for n in shape]
    centre = [0.3 * shape[0], 0.6 * shape[1], 0.45 * shape[2]]
    distance = sum(
        ((axis - c) / (0.18 * n)).reshape([-1 if a == k else 1 for k in range(3)]) ** 2
        for a, (axis, c, n) in enumerate(zip(axes, centre, shape, strict=True))
    )
    hu = (-70 + 200 * np.exp(-distance)).astype(np.float32)
    prepared = prepare_ct(Volume(array_DHW=hu, affine_xyz=np.eye(4)), config)[0]
    back = resample_to_ct_grid(prepared, shape, config)
    assert back.shape == shape
    for axis in range(3):
        mass = back.sum(axis=tuple(a for a in range(3) if a != axis))
        expected_mass = hu.sum(axis=tuple(a for a in range(3) if a != axis)) + 70 * hu.size / shape[axis]
        centre_of_mass = np.average(np.arange(shape[axis]), weights=mass)
        assert abs(centre_of_mass - np.average(np.arange(shape[axis]), weights=expected_mass)) < 0.3 * max(
            1, shape[axis] / 16
        )


def test_equal_shape_is_returned_unchanged():
    """Resampling to the same shape returns identical values."""
    config = CtConfig(shape_DHW=(8, 9, 10))
    values = np.random.default_rng(0).random((8, 9, 10), dtype=np.float32)
    assert np.array_equal(resample_to_ct_grid(values, (8, 9, 10), config), values)


@pytest.mark.parametrize("plane", PLANES, ids=lambda p: p.name)
def test_planes_follow_the_radiological_convention(plane):
    """A voxel at the right, front and head end lies where the plane's marks indicate."""
    volume = np.zeros((3, 4, 5))
    volume[-1, -1, -1] = 1
    index = volume.shape[plane.axis] - 1
    row, column = np.argwhere(plane.picture(volume, index))[0]
    rows, columns = plane.picture(volume, index).shape
    left, right, top, bottom = plane.marks
    assert ("R" in (left, right)) == (plane.name != "sagittal")
    end_of = {"R": True, "A": True, "S": True, "L": False, "P": False, "I": False}
    assert (column == 0, column == columns - 1) == (end_of[left], end_of[right])
    assert (row == 0, row == rows - 1) == (end_of[top], end_of[bottom])


def test_pixel_size_is_the_voxel_size():
    """The pixels of a plane have the physical size of the voxels' sides."""
    volume = Volume(array_DHW=np.zeros((3, 4, 5)), affine_xyz=np.diag([1.0, 2.0, 3.0, 1.0]))
    assert [p.pixel_mm(volume) for p in PLANES] == [(2.0, 1.0), (3.0, 1.0), (3.0, 2.0)]
