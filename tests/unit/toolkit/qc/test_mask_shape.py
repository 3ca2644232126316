"""Shape of a liver mask: planes that were not drawn, and holes."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from tmi.toolkit.imaging.volume import Volume
from tmi.toolkit.qc.image_checks import check_mask
from tmi.toolkit.qc.mask_shape import check_shape, count_gap_planes, hole_fractions, thin_gap_fraction


def ellipsoid(centre: tuple[float, float, float] = (30, 45, 50), radius: tuple[float, float, float] = (24, 38, 44)):
    grid = np.indices((60, 90, 100))
    return sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radius, strict=True)) < 1


def liver() -> np.ndarray:
    """A right lobe, a thin left lobe, a groove at the lower surface, and the tunnel of the vena cava."""
    mask = ellipsoid() | ellipsoid((34, 55, 20), (9, 10, 18))
    mask &= ~ellipsoid((6, 45, 55), (14, 10, 9))
    return mask & ~ellipsoid((30, 80, 50), (60, 6, 6))


def codes(mask: np.ndarray) -> list[str]:
    return [issue.code for issue in check_shape(mask)]


def test_complete_liver_has_no_finding():
    """Lobes, grooves and tunnels of a complete liver are neither gaps nor holes."""
    assert codes(liver()) == []
    assert hole_fractions(liver()) < (0.01, 0.02)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("every", [2, 3])
def test_part_that_was_not_drawn_on_every_plane_is_found(axis, every):
    """One half of a mask on every second or third plane is a gap, although no plane is empty."""
    mask = np.moveaxis(liver(), axis, 0).copy()
    drawn = mask[::every].copy()
    half = mask.shape[2] // 2
    mask[:, :, half:] = False
    mask[::every, :, half:] = drawn[:, :, half:]
    whole = np.moveaxis(mask, 0, axis)
    assert codes(whole) == ["mask-gap"]
    found, fraction = thin_gap_fraction(whole)
    assert found == axis
    assert fraction > 0.2
    assert thin_gap_fraction(liver())[1] < 0.02


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("every", [2, 3])
def test_planes_that_were_not_drawn_are_counted(axis, every):
    """A mask drawn on every second or third plane of any axis has gaps, also with a few stray voxels in between."""
    mask = np.moveaxis(liver(), axis, 0).copy()
    occupied = np.flatnonzero(mask.any(axis=(1, 2)))
    blank = [k for k in range(occupied[1], occupied[-1]) if (k - occupied[0]) % every]
    mask[blank] = False
    for stray in (False, True):
        if stray:
            mask[blank, mask.shape[1] // 2, mask.shape[2] // 2] = True
        whole = np.moveaxis(mask, 0, axis)
        found, gaps = count_gap_planes(whole)
        assert found == axis
        assert gaps >= 0.5 * len(blank)  # the outermost planes lie beside planes of nearly no area
        assert codes(whole) == ["mask-gap"]


@pytest.mark.parametrize(
    ("centre", "radius"),
    [
        ((30, 45, 50), (14, 20, 24)),
        ((36, 38, 60), (8, 12, 12)),
        ((30, 18, 50), (12, 14, 20)),
        ((30, 14, 50), (12, 14, 20)),
    ],
)
def test_tumour_without_the_livers_label_is_a_hole(centre, radius):
    """A tumour that has a label of its own leaves a hole, inside the liver or at its surface."""
    tumour = ellipsoid(centre, radius) & liver()
    assert hole_fractions(liver() & ~tumour)[1] > 0.9 * tumour.sum() / liver().sum()
    assert codes(liver() & ~tumour) == ["mask-holes"]


def test_real_livers_have_no_finding(shared_data):
    """The livers of real masks, of 3 mm voxels and of 20 thick slices, are free of gaps and holes."""
    for name in ("totalsegmentator-ct-3mm/example_seg_fast_force_split", "totalsegmentator-ct-dicom/example_seg_dicom"):
        image = nib.as_closest_canonical(nib.load(shared_data / f"{name}.nii.gz"))
        mask = np.asarray(image.dataobj).transpose(2, 1, 0) == 5
        occupied = np.argwhere(mask)
        box = tuple(slice(a, b + 1) for a, b in zip(occupied.min(axis=0), occupied.max(axis=0), strict=True))
        assert codes(mask[box]) == []


def test_findings_reach_the_check_of_a_case():
    """`check_mask`, which `tmi check`, `tmi import` and predictions run, reports the shape of any mask."""
    ct = Volume(array_DHW=np.full((60, 90, 100), 60, dtype=np.int16), affine_xyz=np.diag([2.0, 2.0, 3.0, 1.0]))
    mask = liver()
    mask[1::2] = False
    findings = {issue.code for issue in check_mask(ct, Volume(array_DHW=mask, affine_xyz=ct.affine_xyz))}
    assert "mask-gap" in findings
