"""Averaging of a CT that shrinks (`ct.antialias`): known signals, noise, and the same values by streaming."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import adaptive_avg_pool3d

from tmi.toolkit.config.schema import CtConfig
from tmi.toolkit.errors import UsageError
from tmi.toolkit.imaging.box_filter import averaged, box_taps
from tmi.toolkit.imaging.ct_resampling import StreamingResampler, prepare_ct
from tmi.toolkit.imaging.volume import Volume


def volume(shape: tuple[int, int, int]) -> Volume:
    hu = np.random.default_rng(3).integers(-200, 300, shape).astype(np.int16)
    return Volume(array_DHW=hu, affine_xyz=np.eye(4))


def test_voxel_covered_in_part_counts_with_that_part():
    """Five voxels to two: each output is (a + b + c / 2) / 2.5 of its own end."""
    line = np.array([[1.0, 2.0, 4.0, 8.0, 16.0]], dtype=np.float32)
    expected = [[(1 + 2 + 2) / 2.5, (2 + 8 + 16) / 2.5]]
    np.testing.assert_allclose(averaged(line, box_taps(5, 2), axis=1), expected, rtol=1e-6)


@pytest.mark.parametrize(("n_in", "n_out"), [(5, 2), (200, 64), (512, 48), (9, 9), (7, 6), (113, 24)])
def test_every_input_voxel_has_the_same_total_weight(n_in, n_out):
    """Each of the n_in voxels contributes n_out / n_in in total: none is ignored."""
    taps = box_taps(n_in, n_out)
    total = np.zeros(n_in)
    np.add.at(total, taps.index_KO, taps.weight_KO)
    np.testing.assert_allclose(total, n_out / n_in, rtol=1e-5)
    np.testing.assert_allclose(taps.weight_KO.sum(axis=0), 1.0, rtol=1e-6)


def test_whole_ratios_equal_torchs_average_pooling():
    """At whole ratios of the sizes the values are torch's `adaptive_avg_pool3d` of the windowed CT."""
    ct, config = volume((24, 32, 40)), CtConfig(shape_DHW=(8, 16, 10), antialias=True)
    scaled = (np.clip(ct.array_DHW.astype(np.float64), -70, 130) + 70) / 200
    expected = adaptive_avg_pool3d(torch.from_numpy(scaled)[None], (8, 16, 10)).numpy()
    np.testing.assert_allclose(prepare_ct(ct, config), expected, atol=1e-6)


def test_averaging_slices_removes_noise_that_interpolation_keeps():
    """Of a noise of 0.1 in 200 slices, 64 interpolated ones keep 0.081 and 64 averaged ones 0.054."""
    hu = np.random.default_rng(0).normal(30.0, 20.0, (200, 32, 32)).astype(np.float32)
    ct, config = Volume(array_DHW=hu, affine_xyz=np.eye(4)), CtConfig(shape_DHW=(64, 32, 32), window_hu=(-170, 230))
    ct = replace(ct, array_DHW=30 + 2 * (hu - 30))  # 40 of 400 HU: a noise of 0.1, which the window does not clip
    assert prepare_ct(ct, config).std() == pytest.approx(0.1 * np.sqrt(2 / 3), rel=0.02)
    weights = box_taps(200, 64).weight_KO.astype(np.float64)
    remaining = 0.1 * np.sqrt((weights**2).sum(axis=0).mean())
    assert remaining == pytest.approx(0.0535, abs=5e-4)
    assert prepare_ct(ct, replace(config, antialias=True)).std() == pytest.approx(remaining, rel=0.02)


def test_axes_that_do_not_shrink_are_interpolated_as_before():
    """An axis that grows or keeps its size has the values without antialiasing, to the last bit."""
    ct, config = volume((9, 20, 24)), CtConfig(shape_DHW=(16, 20, 30))
    np.testing.assert_array_equal(prepare_ct(ct, replace(config, antialias=True)), prepare_ct(ct, config))


@pytest.mark.parametrize("target", [(16, 18, 9), (16, 40, 37), (24, 18, 50), (40, 18, 9)])
def test_streamed_planes_give_the_same_values(target):
    """Chunks that start as planes arrive, last plane first, give the values of a whole CT."""
    ct, config = volume((31, 40, 37)), CtConfig(shape_DHW=target, antialias=True)
    with ThreadPoolExecutor(2) as pool:
        resampler = StreamingResampler(config, pool)
        for z in reversed(range(31)):
            resampler.on_planes_ready(ct.array_DHW, z, z + 1)
        streamed = resampler.finish(ct)
    np.testing.assert_array_equal(streamed, prepare_ct(ct, config))


def test_constant_ct_stays_constant():
    """Weights sum to 1 along all axes together."""
    ct = Volume(array_DHW=np.full((50, 60, 70), 30, dtype=np.int16), affine_xyz=np.eye(4))
    assert prepare_ct(ct, CtConfig(shape_DHW=(16, 13, 29), antialias=True)) == pytest.approx(0.5, abs=1e-6)


def test_antialias_with_nearest_slices_is_rejected():
    """`nearest` copies slices, so that there is nothing to average."""
    with pytest.raises(UsageError, match="antialias"):
        CtConfig(shape_DHW=(8, 8, 8), antialias=True, depth_resampling="nearest")
