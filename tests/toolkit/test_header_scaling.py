"""Slope and intercept of a NIfTI header belong to the voxels; nibabel moves them out of the header when it loads."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from tmi.toolkit.case import Case
from tmi.toolkit.volume import read_ct


@pytest.mark.parametrize(
    ("slope", "intercept", "kind"),
    [(1.0, -1024.0, np.int16), (2.0, 0.0, np.int16), (0.5, -10.25, np.float32), (1.0, 0.0, np.int16)],
)
def test_a_scaled_header_gives_the_values_that_nibabel_gives(slope, intercept, kind, tmp_path):
    stored = np.arange(4 * 5 * 6, dtype=np.uint16).reshape(4, 5, 6)
    image = nib.Nifti1Image(stored, np.diag([2.0, 3.0, 4.0, 1.0]))
    image.header.set_slope_inter(slope, intercept)
    nib.save(image, tmp_path / "ct.nii.gz")
    ct = read_ct(Case(folder=tmp_path, case_id="x"))
    expected = nib.load(tmp_path / "ct.nii.gz").get_fdata()
    assert expected.min() == intercept
    np.testing.assert_array_equal(ct.array_DHW, expected.transpose(2, 1, 0))
    assert ct.array_DHW.dtype == kind
