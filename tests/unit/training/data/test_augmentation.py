"""Augmentation: sampled parameters, geometry, intensity, reproducibility, and off in every preset."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
import torch

from factories.small_fold import SPLIT, make_arrays, small_config, train_small
from tmi.toolkit.config.presets import PRESETS
from tmi.toolkit.config.schema import AugmentationConfig, Config
from tmi.toolkit.errors import UsageError
from tmi.training.data.augmentation import AugmentationParams, apply_augmentation, sample_augmentation
from tmi.training.data.fold_dataset import EpochBatches, FoldDataset

IDENTITY = AugmentationParams(
    shift_d=0, shift_h=0, shift_w=0, rotation_degrees=0, scale=0, offset=0, noise=0, noise_seed=0
)
ALL = AugmentationConfig(shift_voxels_DHW=(1.0, 2.0, 2.0), rotation_degrees=10.0, noise=0.05, scale=0.1, offset=0.05)
WINDOW = (0.0, 1.0)


@pytest.fixture(scope="module")
def config(micro_config: Config) -> Config:
    small = small_config(micro_config)
    return replace(small, augmentation=ALL, train=replace(small.train, epochs=2))


def block(d: int, h: int, w: int) -> np.ndarray:
    """A volume of 9x11x13 voxels with one bright voxel."""
    ct = np.zeros((1, 9, 11, 13), dtype=np.float32)
    ct[0, d, h, w] = 1.0
    return ct


def sample(epoch: int = 0, case_id: str = "C1", **more: int) -> AugmentationParams:
    return sample_augmentation(ALL, **({"seed": 42, "fold": 0} | more), epoch=epoch, case_id=case_id)


def test_presets_do_not_augment():
    """Augmentation is off in every preset."""
    assert not any(preset().augmentation.active for preset in PRESETS.values())


def test_seed_fold_epoch_and_case_determine_sample():
    """The same (seed, fold, epoch, case) gives the same parameters, and any other gives different ones."""
    assert sample() == sample()
    others = {sample(epoch=1), sample(case_id="C2"), sample(seed=43), sample(fold=1)}
    assert len({sample(), *others}) == 5


def test_sampled_parameters_stay_within_bounds():
    """Parameters fill the interval between their bounds on both sides."""
    samples = [sample(epoch=e) for e in range(400)]
    for name, bound in (("shift_d", 1), ("shift_w", 2), ("rotation_degrees", 10), ("scale", 0.1), ("offset", 0.05)):
        values = [getattr(s, name) for s in samples]
        assert -bound <= min(values) < -0.9 * bound
        assert 0.9 * bound < max(values) <= bound
    assert 0 <= min(s.noise for s in samples) < max(s.noise for s in samples) <= 0.05


def test_zero_parameters_leave_image_unchanged():
    """Parameters of 0 change nothing."""
    ct = np.random.default_rng(0).uniform(0, 1, (1, 5, 6, 7)).astype(np.float32)
    np.testing.assert_allclose(apply_augmentation(ct, IDENTITY, window=WINDOW), ct, atol=1e-7)


@pytest.mark.parametrize(("axis", "name"), [(1, "shift_d"), (2, "shift_h"), (3, "shift_w")])
def test_shift_moves_image_along_axis(axis, name):
    """A positive shift moves the image towards higher indices along its axis."""
    moved = apply_augmentation(block(4, 5, 6), replace(IDENTITY, **{name: 2.0}), window=WINDOW)
    expected = [0, 4, 5, 6]
    expected[axis] += 2
    assert list(np.unravel_index(moved.argmax(), moved.shape)) == expected
    assert moved.max() == pytest.approx(1.0, abs=1e-4)


def test_rotation_acts_in_axial_plane():
    """A quarter turn moves a voxel beside the centre along W to one along H and keeps its depth."""
    turned = apply_augmentation(block(2, 5, 9), replace(IDENTITY, rotation_degrees=90.0), window=WINDOW)
    _, d, h, w = np.unravel_index(turned.argmax(), turned.shape)
    assert (d, w) == (2, 6)
    assert abs(h - 5) == 3


def test_intensity_matches_formula_and_is_clipped():
    """Contrast, brightness and noise follow the formula, and the result is clipped to the window."""
    ct = np.full((1, 4, 4, 4), 0.7, dtype=np.float32)
    changed = apply_augmentation(ct, replace(IDENTITY, scale=0.5, offset=-0.1), window=WINDOW)
    np.testing.assert_allclose(changed, 0.5 + 1.5 * 0.2 - 0.1, atol=1e-6)
    assert float(apply_augmentation(ct, replace(IDENTITY, offset=0.9), window=WINDOW).max()) == 1.0
    noisy = apply_augmentation(
        np.full((1, 20, 20, 20), 100.0, dtype=np.float32), replace(IDENTITY, noise=0.1), window=(0.0, 255.0)
    )
    assert noisy.std() == pytest.approx(25.5, rel=0.05)


def test_only_training_batches_are_augmented(config):
    """Only batches with an epoch are augmented, differently in each epoch and reproducibly."""
    data = FoldDataset(make_arrays(), SPLIT, config, tokenizer=None)
    original = data.batch(SPLIT.train).ct
    arrays = make_arrays()
    validation = torch.from_numpy(arrays.ct_N1DHW[arrays.rows(SPLIT.validation)])
    assert torch.equal(data.batch(SPLIT.validation).ct, validation)
    first, second = (data.batch(SPLIT.train, epoch=e).ct for e in (0, 1))
    assert not torch.equal(first, original)
    assert not torch.equal(first, second)
    assert torch.equal(first, data.batch(SPLIT.train, epoch=0).ct)
    iterated = torch.cat([b.ct for b in EpochBatches(data, lambda: 1)])
    ids = [i for batch in data.epoch_batches(1) for i in batch]
    assert torch.equal(iterated, data.batch(tuple(ids), epoch=1).ct)
    assert not torch.equal(iterated, data.batch(tuple(ids)).ct)


def test_log_reproduces_augmentation(config, tmp_path):
    """augmentation.csv lists every epoch and case, and its parameters reproduce the augmented CT."""
    files = train_small(tmp_path / "fold1", make_arrays(), config)
    rows = list(csv.DictReader(io.StringIO(files.augmentation.read_text())))
    assert [(int(r["epoch"]), r["case_id"]) for r in rows] == [(e, i) for e in (0, 1) for i in SPLIT.train]
    row = rows[-1]
    saved = AugmentationParams(
        **{k: int(v) if k == "noise_seed" else float(v) for k, v in row.items() if k not in ("epoch", "case_id")}
    )
    arrays = make_arrays()
    data = FoldDataset(arrays, SPLIT, config, tokenizer=None)
    again = apply_augmentation(arrays.ct_N1DHW[arrays.rows([row["case_id"]])[0]], saved, window=config.ct.scale_to)
    np.testing.assert_array_equal(data.batch((row["case_id"],), epoch=1).ct[0].numpy(), again)


@pytest.mark.parametrize("bad", [{"noise": -0.1}, {"scale": 1.0}, {"rotation_degrees": 200.0}])
def test_invalid_bounds_are_rejected(bad):
    """Bounds outside their range are a usage error."""
    with pytest.raises(UsageError, match="augmentation"):
        AugmentationConfig(**bad)
