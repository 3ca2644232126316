"""Augmentation does what was sampled, the same for the same (seed, fold, epoch, case), and nothing in any preset."""

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

STILL = AugmentationParams(
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


def draw(epoch: int = 0, case_id: str = "C1", **more: int) -> AugmentationParams:
    return sample_augmentation(ALL, **({"seed": 42, "fold": 0} | more), epoch=epoch, case_id=case_id)


def test_no_preset_augments():
    assert not any(preset().augmentation.active for preset in PRESETS.values())


def test_the_same_seed_fold_epoch_and_case_draw_the_same_and_any_other_draws_another():
    assert draw() == draw()
    others = {draw(epoch=1), draw(case_id="C2"), draw(seed=43), draw(fold=1)}
    assert len({draw(), *others}) == 5


def test_what_is_drawn_lies_within_its_bounds_on_both_sides():
    changes = [draw(epoch=e) for e in range(400)]
    for name, bound in (("shift_d", 1), ("shift_w", 2), ("rotation_degrees", 10), ("scale", 0.1), ("offset", 0.05)):
        values = [getattr(c, name) for c in changes]
        assert -bound <= min(values) < -0.9 * bound
        assert 0.9 * bound < max(values) <= bound
    assert 0 <= min(c.noise for c in changes) < max(c.noise for c in changes) <= 0.05


def test_nothing_sampled_changes_nothing():
    ct = np.random.default_rng(0).uniform(0, 1, (1, 5, 6, 7)).astype(np.float32)
    np.testing.assert_allclose(apply_augmentation(ct, STILL, window=WINDOW), ct, atol=1e-7)


@pytest.mark.parametrize(("axis", "name"), [(1, "shift_d"), (2, "shift_h"), (3, "shift_w")])
def test_a_shift_moves_the_image_towards_higher_indices_along_its_axis(axis, name):
    moved = apply_augmentation(block(4, 5, 6), replace(STILL, **{name: 2.0}), window=WINDOW)
    expected = [0, 4, 5, 6]
    expected[axis] += 2
    assert list(np.unravel_index(moved.argmax(), moved.shape)) == expected
    assert moved.max() == pytest.approx(1.0, abs=1e-4)


def test_a_rotation_turns_the_axial_plane_and_leaves_the_depth():
    """A quarter turn takes what lies along W beside the centre to what lies along H."""
    turned = apply_augmentation(block(2, 5, 9), replace(STILL, rotation_degrees=90.0), window=WINDOW)
    _, d, h, w = np.unravel_index(turned.argmax(), turned.shape)
    assert (d, w) == (2, 6)
    assert abs(h - 5) == 3


def test_intensity_follows_the_formula_and_stays_in_the_window():
    ct = np.full((1, 4, 4, 4), 0.7, dtype=np.float32)
    changed = apply_augmentation(ct, replace(STILL, scale=0.5, offset=-0.1), window=WINDOW)
    np.testing.assert_allclose(changed, 0.5 + 1.5 * 0.2 - 0.1, atol=1e-6)
    assert float(apply_augmentation(ct, replace(STILL, offset=0.9), window=WINDOW).max()) == 1.0
    noisy = apply_augmentation(
        np.full((1, 20, 20, 20), 100.0, dtype=np.float32), replace(STILL, noise=0.1), window=(0.0, 255.0)
    )
    assert noisy.std() == pytest.approx(25.5, rel=0.05)


def test_only_training_batches_are_changed_and_each_epoch_otherwise(config):
    data = FoldDataset(make_arrays(), SPLIT, config, tokenizer=None)
    plain = data.batch(SPLIT.train).ct
    arrays = make_arrays()
    held = torch.from_numpy(arrays.ct_N1DHW[arrays.rows(SPLIT.validation)])
    assert torch.equal(data.batch(SPLIT.validation).ct, held)
    first, second = (data.batch(SPLIT.train, epoch=e).ct for e in (0, 1))
    assert not torch.equal(first, plain)
    assert not torch.equal(first, second)
    assert torch.equal(first, data.batch(SPLIT.train, epoch=0).ct)
    seen = torch.cat([b.ct for b in EpochBatches(data, lambda: 1)])
    ids = [i for batch in data.epoch_batches(1) for i in batch]
    assert torch.equal(seen, data.batch(tuple(ids), epoch=1).ct)
    assert not torch.equal(seen, data.batch(tuple(ids)).ct)


def test_what_was_done_is_saved_and_can_be_done_again(config, tmp_path):
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
def test_bounds_that_make_no_sense_are_refused(bad):
    with pytest.raises(UsageError, match="augmentation"):
        AugmentationConfig(**bad)
