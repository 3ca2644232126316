"""Synthetic cases for timing."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from tmi.runtime.benchmark.synthetic_case import write_bench_case
from tmi.toolkit.clinical.schema import load_schema
from tmi.toolkit.config.presets import tiny
from tmi.toolkit.preprocessing.pipeline import prepare_case

SHAPE = (48, 40, 20)


def test_synthetic_case_is_accepted(tmp_path):
    """A synthetic case is prepared like a real one and shows anatomy."""
    case = write_bench_case(tmp_path / "synthetic", load_schema(), seed=0, shape_XYZ=SHAPE)
    prepared = prepare_case(case, tiny(), load_schema())
    assert prepared.ct_1DHW.shape == (1, *tiny().ct.shape_DHW)
    assert prepared.ct_1DHW.std() > 0.2, "anatomy and air, not one grey"
    assert np.isfinite(prepared.radiomics_F).all()


def test_ct_has_scanner_orientation(tmp_path):
    """The CT has the requested shape, int16 voxels and the usual scanner orientation."""
    case = write_bench_case(tmp_path / "synthetic", load_schema(), seed=1, shape_XYZ=SHAPE)
    image = nib.load(case.ct)
    assert image.shape == SHAPE
    assert image.get_data_dtype() == np.int16
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")


def test_case_depends_on_the_seed_only(tmp_path):
    """The same seed gives the same case, another seed another one."""
    folders = [tmp_path / name for name in ("a", "b", "c")]
    cases = [
        write_bench_case(f, load_schema(), seed=s, shape_XYZ=SHAPE) for f, s in zip(folders, (0, 0, 1), strict=True)
    ]
    a, b, c = (np.asanyarray(nib.load(case.ct).dataobj) for case in cases)
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    assert cases[0].radiomics.read_bytes() == cases[1].radiomics.read_bytes()
