"""Scaling: fitted on one set of cases and applied to any other; says what it imputed and what it clipped."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tmi.toolkit.config.schema import RadiomicsConfig
from tmi.toolkit.errors import DamagedError
from tmi.toolkit.radiomics.scaler import RadiomicsScaler

MINMAX, ZSCORE = RadiomicsConfig(scaling="minmax"), RadiomicsConfig(scaling="zscore")
FITTED = np.array([[0.0, -5.0, 7.0, np.nan, 1.0], [10.0, 5.0, 7.0, np.nan, np.nan], [4.0, 1.0, 7.0, np.nan, 3.0]])


def test_minmax_maps_the_fitted_range_to_minus_one_and_one():
    scaled = RadiomicsScaler.fit(FITTED, MINMAX).transform(FITTED)
    np.testing.assert_allclose(scaled.values_NF[:, :2], [[-1, -1], [1, 1], [-0.2, 0.2]], atol=1e-7)
    assert scaled.values_NF.dtype == np.float32
    assert not scaled.clipped_NF.any()


def test_zscore_is_that_of_the_population_and_does_not_clip():
    scaler = RadiomicsScaler.fit(FITTED, ZSCORE)
    column = FITTED[:, 0]
    expected = (column - column.mean()) / column.std()
    np.testing.assert_allclose(scaler.transform(FITTED).values_NF[:, 0], expected, rtol=1e-6)
    far = scaler.transform(np.full((1, 5), 1000.0))
    assert far.values_NF[0, 0] > 100
    assert not far.clipped_NF.any()


def test_what_lies_outside_the_fitted_range_is_clipped_and_told():
    scaled = RadiomicsScaler.fit(FITTED, MINMAX).transform(np.array([[10.1, -5.0, 7.0, 0.0, -99.0]]))
    np.testing.assert_array_equal(scaled.values_NF, [[1, -1, 0, 0, -1]])
    np.testing.assert_array_equal(scaled.clipped_NF, [[True, False, False, False, True]])


@pytest.mark.parametrize("config", [MINMAX, ZSCORE], ids=lambda c: c.scaling)
def test_a_missing_value_becomes_0_and_is_told(config):
    scaled = RadiomicsScaler.fit(FITTED, config).transform(np.full((2, 5), np.nan))
    assert (scaled.values_NF == 0).all()
    assert scaled.imputed_NF.all()
    assert not scaled.clipped_NF.any()


@pytest.mark.parametrize("config", [MINMAX, ZSCORE], ids=lambda c: c.scaling)
def test_missing_values_do_not_move_the_fit(config):
    whole = RadiomicsScaler.fit(np.array([[1.0], [3.0]]), config)
    holed = RadiomicsScaler.fit(np.array([[1.0], [np.nan], [3.0], [np.nan]]), config)
    assert (whole.centre_F, whole.half_width_F) == (holed.centre_F, holed.half_width_F)


@pytest.mark.parametrize("config", [MINMAX, ZSCORE], ids=lambda c: c.scaling)
def test_a_constant_feature_and_one_missing_everywhere_are_always_0(config):
    scaled = RadiomicsScaler.fit(FITTED, config).transform(np.array([[0.0, 0.0, 7000.0, 3.0, 0.0]]))
    assert (scaled.values_NF[0, 2:4] == 0).all()


@pytest.mark.parametrize("config", [MINMAX, ZSCORE], ids=lambda c: c.scaling)
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12, 1e300])
def test_any_size_of_values_gives_finite_numbers(config, scale):
    fitted = np.random.default_rng(0).normal(0, 1, (6, 3)) * scale
    scaler = RadiomicsScaler.fit(fitted, config)
    assert (scaler.half_width_F > 0).all()
    for values in (fitted, fitted * 1e4, -fitted * 1e4):
        assert np.isfinite(scaler.transform(values).values_NF).all()
    np.testing.assert_allclose(
        scaler.transform(fitted).values_NF,
        RadiomicsScaler.fit(fitted / scale, config).transform(fitted / scale).values_NF,
        rtol=1e-5,
        atol=1e-6,
    )


def test_the_ends_of_the_float_range_do_not_overflow():
    fitted = np.array([[-1.7e308], [1.7e308], [0.0]])
    np.testing.assert_allclose(RadiomicsScaler.fit(fitted, MINMAX).transform(fitted).values_NF[:, 0], [-1, 1, 0])


def test_the_case_that_is_scaled_is_not_part_of_the_fit():
    """The scaler is applied to what it has never seen and remembers nothing of it."""
    scaler = RadiomicsScaler.fit(FITTED, MINMAX)
    before = (scaler.centre_F.copy(), scaler.half_width_F.copy())
    scaler.transform(np.full((4, 5), 1e9))
    np.testing.assert_array_equal(scaler.centre_F, before[0])
    np.testing.assert_array_equal(scaler.half_width_F, before[1])


@pytest.mark.parametrize("config", [MINMAX, ZSCORE], ids=lambda c: c.scaling)
def test_a_saved_scaler_scales_to_the_same_bits(config, tmp_path):
    values = np.random.default_rng(2).normal(3, 100, (8, 50))
    scaler = RadiomicsScaler.fit(values, config)
    scaler.save(tmp_path / "scaler.json")
    loaded = RadiomicsScaler.load(tmp_path / "scaler.json")
    assert (loaded.scaling, loaded.fitted_on) == (config.scaling, 8)
    np.testing.assert_array_equal(loaded.transform(values).values_NF, scaler.transform(values).values_NF)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "tmi-scaler/9"},
        {"scaling": "robust"},
        {"centre": [0.0]},
        {"centre": [0.0, None]},
        {"half_width": "ab"},
        {"fitted_on": None},
    ],
    ids=str,
)
def test_a_malformed_scaler_is_damage(change, tmp_path):
    data = {"schema": "tmi-scaler/1", "scaling": "minmax", "fitted_on": 3, "centre": [0, 0], "half_width": [1, 1]}
    (tmp_path / "scaler.json").write_text(json.dumps(data | change))
    with pytest.raises(DamagedError, match=r"scaler .*scaler\.json is malformed"):
        RadiomicsScaler.load(tmp_path / "scaler.json")
