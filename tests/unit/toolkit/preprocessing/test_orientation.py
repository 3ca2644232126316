"""The prepared arrays do not depend on how the files are stored, and the mask stays on its organ."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from factories.cases import write_case
from tmi.toolkit.cases.case import Case
from tmi.toolkit.clinical.schema import load_schema
from tmi.toolkit.config.presets import tiny
from tmi.toolkit.config.schema import CtConfig
from tmi.toolkit.imaging.volume import read_ct, read_mask
from tmi.toolkit.preprocessing.pipeline import prepare_case

CONFIG = replace(tiny(), ct=CtConfig(shape_DHW=(12, 24, 24)))
ORIENTATIONS = [
    "".join(signs[axis] for axis in order)
    for order in itertools.permutations(range(3))
    for signs in itertools.product("RL", "AP", "SI")
]
FAST = settings(
    derandomize=True,
    max_examples=20,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)


def hounsfield(world_xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return HU and liver mask of a smooth body at world coordinates [..., 3] in mm.

    The liver lies at the patient's right, front and top. The body is smooth, so that a shift of the sampling points
    changes a prepared voxel only slightly.
    """
    x, y, z = np.moveaxis(world_xyz, -1, 0)
    body = 1 / (1 + np.exp((np.sqrt((x / 110) ** 2 + (y / 90) ** 2) - 1) * 6))
    liver = 1 - np.sqrt(((x - 40) / 62) ** 2 + ((y - 12) / 55) ** 2 + ((z - 15) / 60) ** 2)
    organ = 1 / (1 + np.exp(-liver * 25))
    return -1000 + 1030 * body + 110 * organ, liver > 0


def write(
    folder: Path, shape_xyz, affine, orientation="RAS", mask_orientation=None, dtype="int16", form="sform"
) -> Case:
    write_case(folder, shape_xyz=(4, 4, 4))
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape_xyz], indexing="ij"), axis=-1)
    hu, liver = hounsfield(index @ affine[:3, :3].T + affine[:3, 3])
    # a little noise that depends on the position, because identical slices are rejected
    hu = hu + 2 * np.sin(index @ np.array([12.9898, 78.233, 37.719]) * 43.7)
    stored = {"ct.nii.gz": (np.rint(hu).astype(dtype), orientation),
              "liver.nii.gz": (liver.astype(np.uint8), mask_orientation or orientation)}  # fmt: skip
    for name, (array, codes) in stored.items():
        image = nib.Nifti1Image(array, affine)
        transform = nib.orientations.ornt_transform(
            nib.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(codes))
        )
        image = image.as_reoriented(transform)
        stored_affine = image.affine
        image.set_qform(stored_affine, 1)
        image.set_sform(stored_affine, 1)
        if form == "qform":
            image.set_sform(None, 0)
        elif form == "sform":
            image.set_qform(None, 0)
        nib.save(image, folder / name)
    return Case(folder=folder, case_id=folder.name)


def grid(shape_xyz, extent_mm=(264.0, 228.0, 192.0), degrees=0.0):
    """Return the affine of a grid of this shape over a fixed box around the origin."""
    spacing = np.array(extent_mm) / np.array(shape_xyz)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape_xyz) - 1) / 2)
    return affine


SHAPE = (44, 38, 30)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    case = write(tmp_path_factory.mktemp("ras") / "P1", SHAPE, grid(SHAPE))
    ct = read_ct(case)
    return prepare_case(case, CONFIG, load_schema()).ct_1DHW, ct, read_mask(case, ct)


def test_volume_has_48_orientations():
    """There are 48 distinct voxel orders."""
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_orientation_does_not_change_the_arrays(reference, tmp_path, orientation):
    """Every voxel order gives the same arrays, bit for bit."""
    case = write(tmp_path / "P1", SHAPE, grid(SHAPE), orientation, mask_orientation=ORIENTATIONS[17])
    ct = read_ct(case)
    assert np.array_equal(ct.array_DHW, reference[1].array_DHW)
    assert np.allclose(ct.affine_xyz, reference[1].affine_xyz, atol=1e-4)
    assert np.array_equal(read_mask(case, ct).array_DHW, reference[2].array_DHW)
    assert np.array_equal(prepare_case(case, CONFIG, load_schema()).ct_1DHW, reference[0])


@given(
    orientation=st.sampled_from(ORIENTATIONS),
    mask_orientation=st.sampled_from(ORIENTATIONS),
    shape=st.tuples(st.integers(36, 56), st.integers(32, 48), st.integers(24, 40)),
    dtype=st.sampled_from(["int16", "int32", "float32", "float64"]),
    form=st.sampled_from(["sform", "qform", "both"]),
)
@FAST
def test_spacing_and_storage_change_arrays_little(reference, orientation, mask_orientation, shape, dtype, form):
    """Any spacing and storage type gives the same arrays within the interpolation error."""
    with TemporaryDirectory() as folder:
        case = write(Path(folder) / "P1", shape, grid(shape), orientation, mask_orientation, dtype, form)
        prepared = prepare_case(case, CONFIG, load_schema())
        ct = read_ct(case)
        mask = read_mask(case, ct)
    low, high = CONFIG.ct.scale_to
    difference = np.abs(prepared.ct_1DHW - reference[0]) / (high - low)
    assert difference.mean() < 0.004
    assert np.quantile(difference, 0.99) < 0.04
    assert np.median(ct.array_DHW[mask.array_DHW]) > 75
    volume = mask.array_DHW.sum() * np.prod(ct.spacing_DHW_mm)
    assert abs(volume / (reference[2].array_DHW.sum() * np.prod(reference[1].spacing_DHW_mm)) - 1) < 0.03


@given(orientation=st.sampled_from(ORIENTATIONS), degrees=st.floats(-9, 9))
@settings(FAST, max_examples=10)
def test_mask_stays_on_organ_under_rotation(orientation, degrees):
    """The mask stays on the liver if the patient is rotated on the table."""
    with TemporaryDirectory() as folder:
        case = write(Path(folder) / "P1", SHAPE, grid(SHAPE, degrees=degrees), orientation, ORIENTATIONS[5])
        ct = read_ct(case)
        mask = read_mask(case, ct)
        prepare_case(case, CONFIG, load_schema())
    assert np.median(ct.array_DHW[mask.array_DHW]) > 75


@pytest.mark.parametrize("axis", range(3))
def test_mirrored_array_changes_the_volume(reference, tmp_path, axis):
    """A mirrored array with the same header gives another volume: the header determines the orientation."""
    case = write(tmp_path / "P1", SHAPE, grid(SHAPE))
    image = nib.load(case.ct)
    nib.save(nib.Nifti1Image(np.flip(np.asanyarray(image.dataobj), axis).copy(), image.affine), case.ct)
    assert not np.array_equal(read_ct(case).array_DHW, reference[1].array_DHW)
