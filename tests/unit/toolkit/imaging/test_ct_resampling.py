"""Window, scale and resample a CT: the chunked numpy implementation against torch's `interpolate`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from tmi.toolkit.config.schema import CtConfig
from tmi.toolkit.imaging.ct_resampling import prepare_ct
from tmi.toolkit.imaging.volume import Volume

SIZES = [
    ((16, 20, 24), (16, 20, 24)),
    ((31, 40, 37), (16, 18, 9)),
    ((9, 10, 12), (24, 31, 48)),
    ((61, 13, 50), (8, 32, 50)),
    ((1, 9, 8), (8, 8, 9)),
    ((112, 101, 122), (24, 48, 48)),
]


def volume(shape: tuple[int, int, int], dtype: str = "int16") -> Volume:
    hu = np.random.default_rng(3).integers(-1024, 1500, shape).astype(dtype)
    return Volume(array_DHW=hu, affine_xyz=np.eye(4))


def torch_reference(ct: Volume, config: CtConfig) -> np.ndarray:
    low, high = config.window_hu
    to_low, to_high = config.scale_to
    windowed = (np.clip(ct.array_DHW.astype(np.float64), low, high) - low) / (high - low)
    scaled = torch.from_numpy(windowed * (to_high - to_low) + to_low)[None, None]
    if config.depth_resampling == "nearest":
        scaled = interpolate(scaled, size=(config.shape_DHW[0], *scaled.shape[3:]), mode="nearest")
    return interpolate(scaled, size=config.shape_DHW, mode="trilinear", align_corners=False)[0].numpy()


@pytest.mark.parametrize(("source", "target"), SIZES)
@pytest.mark.parametrize("depth", ["linear", "nearest"])
@pytest.mark.parametrize("scale_to", [(0.0, 1.0), (0.0, 255.0)])
def test_resampling_matches_torch(source, target, depth, scale_to):
    """Values equal torch's interpolation to 1e-5 of the scale, whether axes grow, shrink or keep their size."""
    config = CtConfig(shape_DHW=target, depth_resampling=depth, scale_to=scale_to)
    ct = volume(source)
    prepared = prepare_ct(ct, config)
    assert prepared.shape == (1, *target)
    assert prepared.dtype == np.float32
    np.testing.assert_allclose(prepared, torch_reference(ct, config), atol=1e-5 * scale_to[1], rtol=0)


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_input_ct_is_not_modified(dtype):
    """Preparation leaves the CT's array unchanged, with and without resampling."""
    ct = volume((12, 14, 10), dtype)
    before = ct.array_DHW.copy()
    prepare_ct(ct, CtConfig(shape_DHW=(12, 14, 10)))
    prepare_ct(ct, CtConfig(shape_DHW=(8, 28, 9)))
    np.testing.assert_array_equal(ct.array_DHW, before)


@pytest.mark.parametrize(("hu", "value"), [(-3024, 0.0), (-70, 0.0), (30, 0.5), (130, 1.0), (3000, 1.0)])
def test_default_window_is_level_30_width_200(hu, value):
    """-70 HU maps to the lower end of the scale and 130 HU to the upper; values outside are clipped."""
    ct = Volume(array_DHW=np.full((8, 8, 8), hu, dtype=np.int16), affine_xyz=np.eye(4))
    assert prepare_ct(ct, CtConfig(shape_DHW=(8, 8, 8))) == pytest.approx(value, abs=1e-6)
    scaled = prepare_ct(ct, CtConfig(shape_DHW=(8, 8, 8), scale_to=(0.0, 255.0)))
    assert scaled == pytest.approx(255 * value, abs=1e-4)


def test_window_is_applied_before_resampling():
    """Averaging -1000 and 1000 HU first would give 0 HU, which maps to 0.35 instead of 0.5."""
    hu = np.tile(np.array([-1000, 1000], dtype=np.int16), (16, 16, 8))
    prepared = prepare_ct(Volume(array_DHW=hu, affine_xyz=np.eye(4)), CtConfig(shape_DHW=(16, 16, 8)))
    assert prepared == pytest.approx(0.5, abs=1e-6)


def test_prepared_values_stay_within_scale():
    """Interpolation never leaves the range of `scale_to`."""
    prepared = prepare_ct(volume((33, 21, 45)), CtConfig(shape_DHW=(20, 50, 31)))
    assert prepared.min() >= 0.0
    assert prepared.max() <= 1.0


def test_nearest_depth_copies_slices_without_mixing():
    """With `depth_resampling` of `nearest` only values of the input occur; linear interpolation adds others."""
    hu = np.repeat(np.array([-70, 130], dtype=np.int16), 4)[:, None, None] * np.ones((1, 8, 8), dtype=np.int16)
    ct = Volume(array_DHW=hu.astype(np.int16), affine_xyz=np.eye(4))
    nearest = prepare_ct(ct, CtConfig(shape_DHW=(11, 8, 8), depth_resampling="nearest"))
    linear = prepare_ct(ct, CtConfig(shape_DHW=(11, 8, 8)))
    assert set(np.unique(nearest)) == {0.0, 1.0}
    assert len(np.unique(linear)) > 2
