"""Copies of a CT under another id are found although they were shifted, flipped or rescaled."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, rotate, zoom

from tmi.training.data.duplicate_images import find_copies

SHAPE = (24, 48, 48)


def body(seed: int, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """A bright ellipsoid of random build with random organs of different sizes."""
    random = np.random.default_rng(seed)
    radii, centre = random.uniform(0.75, 0.95, 3), random.uniform(-0.05, 0.05, 3)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = sum(((axis - c) / radius) ** 2 for axis, c, radius in zip(axes, centre, radii, strict=True)) < 1
    organs = sum(gaussian_filter(random.normal(size=shape), sigma) * (2 * sigma) ** 1.5 for sigma in (1, 2, 4))
    return np.where(inside, np.clip(0.5 + 0.15 * organs, 0, 1), 0).astype(np.float32)


def resampled(image: np.ndarray, factor: float) -> np.ndarray:
    small = zoom(image, factor, order=1)
    return zoom(small, [n / m for n, m in zip(SHAPE, small.shape, strict=True)], order=1)


COPIES = {
    "equal": lambda a: a,
    "shifted by a voxel": lambda a: np.roll(a, 1, axis=0),
    "shifted along every axis": lambda a: np.roll(a, (1, -2, 2), axis=(0, 1, 2)),
    "shifted by half a voxel": lambda a: (a + np.roll(a, 1, axis=2)) / 2,
    "shifted out of the volume": lambda a: np.concatenate([a[:, 2:], a[:, -1:], a[:, -1:]], axis=1),
    "rescaled values": lambda a: np.clip(a * 1.2 - 0.05, 0, 1),
    "other units": lambda a: a * 255,
    "resampled": lambda a: resampled(a, 0.7),
    "noise": lambda a: a + np.random.default_rng(9).normal(0, 0.03, a.shape),
    "shifted, flipped and rescaled": lambda a: 1.1 * np.roll(a, 2, axis=1)[::-1, :, ::-1] + 0.02,
    "turned by one degree": lambda a: rotate(a, 1, axes=(1, 2), reshape=False, order=1),
} | {
    f"flipped {flip}": lambda a, flip=flip: a[:: flip[0], :: flip[1], :: flip[2]]
    for flip in itertools.product((1, -1), repeat=3)
    if flip != (1, 1, 1)
}


@pytest.mark.parametrize("change", COPIES)
def test_changed_copy_is_found(change):
    """The copy's row is paired with its original, and with no other row."""
    images = np.stack([body(seed) for seed in range(5)])
    images[3] = COPIES[change](images[1])
    ((first, second, similarity),) = find_copies(images[:, None])
    assert (first, second) == (1, 3)
    assert 0.65 <= similarity <= 1.0 + 1e-5


def test_images_of_different_patients_are_no_copies():
    """Bodies with other content, uniform images and noise are paired with nothing."""
    images = [body(seed) for seed in range(12)]
    images += [np.zeros(SHAPE, np.float32), np.ones(SHAPE, np.float32), np.full(SHAPE, 1e-20, np.float32)]
    images += [np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32) for seed in range(4)]
    assert list(find_copies(np.stack(images)[:, None])) == []


def test_synthetic_patients_are_no_copies(synthetic_cohort, micro_config):
    """CTs of different synthetic patients, whose bodies are much alike, are no copies of each other."""
    from dataclasses import replace

    from tmi.toolkit.cases.case import open_cohort
    from tmi.toolkit.clinical.schema import load_schema
    from tmi.toolkit.preprocessing.pipeline import prepare_case

    config = replace(micro_config, ct=replace(micro_config.ct, shape_DHW=SHAPE))
    images = [prepare_case(case, config, load_schema()).ct_1DHW for case in open_cohort(synthetic_cohort).cases]
    assert list(find_copies(np.stack(images))) == []
    images.append(np.roll(images[2], 1, axis=3)[:, ::-1])
    assert [pair[:2] for pair in find_copies(np.stack(images))] == [(2, len(images) - 1)]


def test_larger_volumes_are_averaged():
    """A volume of another size than the compared grid is averaged over blocks."""
    images = np.stack([body(seed, (40, 100, 100)) for seed in range(3)])
    images[2] = np.roll(images[0], 1, axis=2)
    assert [pair[:2] for pair in find_copies(images[:, None])] == [(0, 2)]


def test_small_volumes_are_not_compared():
    """Volumes with few voxels can be alike by chance: nothing is reported."""
    images = np.stack([body(0, (8, 16, 16))] * 2)
    assert list(find_copies(images[:, None])) == []
