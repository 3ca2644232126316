"""A mask that does not lie where a liver lies, found by lungs, bones and the body's outline of the CT itself."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from tmi.toolkit.imaging.volume import Volume
from tmi.toolkit.qc.image_checks import check_mask
from tmi.toolkit.qc.liver_place import check_place
from tmi.toolkit.synthetic.phantom import LABELS, Phantom, disease_signs, render, sample_body, sample_grid

DEPTH, HEIGHT, WIDTH = 40, 60, 60
AFFINE = np.diag([5.0, 4.0, 5.0, 1.0])
Z, Y, X = np.meshgrid(*(np.arange(n) for n in (DEPTH, HEIGHT, WIDTH)), indexing="ij")
LUNG, BONE, MUSCLE = -800, 500, 50


def cylinder(half_width: float, half_depth: float, centre: tuple[float, float] = (30, 30)) -> np.ndarray:
    """Voxels [D,H,W] within an ellipse of every slice; half axes and centre (y, x) in voxels."""
    return ((X - centre[1]) / half_width) ** 2 + ((Y - centre[0]) / half_depth) ** 2 < 1


def trunk(*, lungs: bool = True, spine: bool = True) -> np.ndarray:
    """A trunk in HU: a spine at the back, lungs from slice 28 up, a dome of muscle on the right in between."""
    hu = np.where(cylinder(27, 24), MUSCLE, -1000)
    if spine:
        hu[cylinder(4, 4, (14, 30)) & (Z % 7 < 5)] = BONE
    if lungs:
        hu[(Z >= 28) & cylinder(23, 17, (34, 30)) & ~((X > 32) & cylinder(20, 16) & (Z < 32))] = LUNG
    return hu


def box(z: tuple[int, int], y: tuple[int, int] = (26, 44), x: tuple[int, int] = (33, 50)) -> np.ndarray:
    """A mask of one box, by default on the right in front of the spine."""
    mask = np.zeros(X.shape, dtype=np.bool_)
    mask[z[0] : z[1], y[0] : y[1], x[0] : x[1]] = True
    return mask


def place(hu: np.ndarray, mask: np.ndarray) -> str | None:
    """The evidence that the mask lies elsewhere."""
    findings = list(check_place(Volume(array_DHW=hu.astype(np.int16), affine_xyz=AFFINE), mask))
    assert all(issue.code == "liver-place" and issue.fix for issue in findings)
    return findings[0].message.partition("lies: ")[2] if findings else None


@cache
def phantom(seed: int) -> tuple[Volume, Phantom]:
    rng = np.random.default_rng(seed)
    body = sample_body(rng, female=bool(seed % 2), bmi=float(rng.uniform(18, 38)))
    signs = disease_signs(liver=rng.normal(), portal=rng.normal(), deposit=rng.normal())
    grid = sample_grid(rng, body)
    made = render(body, signs, grid, seed=np.random.SeedSequence(seed))
    array = np.ascontiguousarray(made.hu_XYZ.transpose(2, 1, 0))
    return Volume(array_DHW=array, affine_xyz=np.diag([*grid.spacing_XYZ_mm, 1.0])), made


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("cut", [0, 2, 5, 9])
def test_liver_of_phantom_has_no_finding(seed, cut):
    """The liver of a phantom has no finding, in the whole CT and in one that ends below the lungs."""
    ct, made = phantom(seed)
    mask = np.ascontiguousarray(made.liver_XYZ.transpose(2, 1, 0))
    top = int(np.flatnonzero(mask.any(axis=(1, 2)))[-1]) + 1 - cut if cut else mask.shape[0]
    assert list(check_place(Volume(array_DHW=ct.array_DHW[:top], affine_xyz=ct.affine_xyz), mask[:top])) == []


@pytest.mark.parametrize("margin", [0, 2])
def test_view_of_the_liver_alone_has_no_finding(margin):
    """A CT that was cropped to the liver's box, without air around the body, has no finding."""
    ct, made = phantom(1)
    mask = made.liver_XYZ.transpose(2, 1, 0)
    spans = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != k)))[[0, -1]] for k in range(3)]
    part = tuple(slice(max(0, int(low) - margin), int(high) + 1 + margin) for low, high in spans)
    cropped = Volume(array_DHW=np.ascontiguousarray(ct.array_DHW[part]), affine_xyz=ct.affine_xyz)
    assert list(check_place(cropped, np.ascontiguousarray(mask[part]))) == []


def test_kidney_of_phantom_lies_below_the_lungs():
    """Another organ of the same CT, lower down, is a finding."""
    ct, made = phantom(1)
    kidney = np.ascontiguousarray((made.tissue_XYZ == LABELS["kidney"]).transpose(2, 1, 0))
    (issue,) = check_place(ct, kidney)
    assert issue.code == "liver-place"
    assert "below the lungs" in issue.message


def test_organs_of_a_trunk_are_compared_with_its_lungs_and_spine():
    """A mask under the dome fits; one in the pelvis, above the lungs' lower end, or behind the spine does not."""
    hu = trunk()
    assert place(hu, box((14, 30))) is None
    assert place(hu, box((2, 12))) == "its top lies 85 mm below the lungs"
    assert place(trunk(), box((34, 38), y=(30, 34), x=(29, 31))) == "100% of it has lung below it"
    assert place(hu, box((14, 30), y=(7, 11), x=(33, 42))) == "it lies behind the middle of the spine"


@pytest.mark.parametrize("cut", [False, True])
def test_limb_has_neither_lungs_nor_spine(cut):
    """A mask in a thigh is a finding, also if the CT ends within the mask."""
    hu = np.where(cylinder(19, 19), MUSCLE, -1000)
    hu[cylinder(3.5, 3.5, (31, 30))] = BONE
    mask = box((10, 40 if cut else 30), y=(34, 46), x=(32, 44))
    assert place(hu, mask) == "ct.nii.gz shows " + ("neither lungs nor a spine" if cut else "no lung above it")


def test_complete_mask_without_lungs_above_is_a_finding():
    """A trunk without lungs above a complete mask is no upper abdomen; slices of air at the top are padding."""
    hu = trunk(lungs=False)
    assert place(hu, box((10, 30))) == "ct.nii.gz shows no lung above it"
    assert place(hu, box((10, 40))) is None, "cut off below the lungs"
    hu[36:] = -1000
    assert place(hu, box((10, 36))) is None


def test_gas_and_table_are_no_lungs():
    """Bowel gas, whose blurred edge has the values of lung, and the foam of a table are not taken for lungs."""
    hu = trunk(lungs=False)
    gas = ((X - 30) / 8) ** 2 + ((Y - 40) / 6) ** 2 + ((Z - 34) / 5) ** 2
    hu[gas < 1.3] = -700
    hu[gas < 1] = -1000
    hu[:, 1:4, 5:55] = LUNG
    hu[:, 0, 5:55] = MUSCLE
    assert place(hu, box((10, 30))) == "ct.nii.gz shows no lung above it"


def test_ct_without_landmarks_has_no_finding():
    """Without lungs and bones nothing is known of the place."""
    assert place(trunk(lungs=False, spine=False), box((10, 30))) is None


def test_check_of_the_mask_includes_its_place():
    """The checks that run before every prediction report it, but not for values that are not HU."""
    ct = Volume(array_DHW=trunk(lungs=False).astype(np.int16), affine_xyz=AFFINE)
    mask = Volume(array_DHW=box((10, 30)), affine_xyz=AFFINE)
    assert "liver-place" in {issue.code for issue in check_mask(ct, mask)}
    assert "liver-place" not in {issue.code for issue in check_mask(ct, mask, in_hu=False)}


@pytest.mark.parametrize(("label", "found"), [(5, False), (21, True), (None, True)])
def test_organs_of_a_real_ct(shared_data, label, found):
    """The liver of a real CT is no finding, its bladder and its left thigh are."""
    from tmi.toolkit.ingest.image_files import read_image, read_image_ct

    folder = shared_data / "totalsegmentator-ct-3mm"
    ct = read_image_ct(folder / "example_ct.nii.gz", case_id="real").volume
    labels = read_image(folder / "example_seg_fast_force_split.nii.gz", kind="mask", case_id="real").volume
    mask = labels.array_DHW == label
    if label is None:
        ct = Volume(array_DHW=np.ascontiguousarray(ct.array_DHW[:14, :, :61]), affine_xyz=ct.affine_xyz)
        mask = np.zeros(ct.array_DHW.shape, dtype=np.bool_)
        mask[2:12, 30:60, 20:40] = True
    assert bool(list(check_place(ct, mask))) is found
