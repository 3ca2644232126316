"""The radiomics scaler: fit, imputation, clipping, numerical range and its file."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tmi.toolkit.config.schema import RadiomicsConfig
from tmi.toolkit.errors import DamagedError
from tmi.toolkit.radiomics.scaler import RadiomicsScaler

MINMAX, ZSCORE = RadiomicsConfig(scaling="minmax"), RadiomicsConfig(scaling="zscore")
FITTED = np.array([[0.0, -5.0, 7.0, np.nan, 1.0], [10.0, 5.0, 7.0, np.nan, np.nan], [4.0, 1.0, 7.0, np.nan, 3.0]])


def test_minmax_maps_fitted_range_to_plus_minus_one():
    """The fitted minimum maps to -1 and the maximum to 1, in float32 and without clipping."""
    scaled = RadiomicsScaler.fit(FITTED, MINMAX).transform(FITTED)
    np.testing.assert_allclose(scaled.values_NF[:, :2], [[-1, -1], [1, 1], [-0.2, 0.2]], atol=1e-7)
    assert scaled.values_NF.dtype == np.float32
    assert not scaled.clipped_NF.any()


def test_zscore_uses_population_std_without_clipping():
    """Zscore divides by the population standard deviation and does not limit the result."""
    scaler = RadiomicsScaler.fit(FITTED, ZSCORE)
    column = FITTED[:, 0]
    expected = (column - column.mean()) / column.std()
    np.testing.assert_allclose(scaler.transform(FITTED).values_NF[:, 0], expected, rtol=1e-6)
    outlier = scaler.transform(np.full((1, 5), 1000.0))
    assert outlier.values_NF[0, 0] > 100
    assert not outlier.clipped_NF.any()


def test_values_outside_fitted_range_are_clipped():
    """Minmax clips values outside the fitted range and marks them."""
    scaled = RadiomicsScaler.fit(FITTED, MINMAX).transform(np.array([[10.1, -5.0, 7.0, 0.0, -99.0]]))
    np.testing.assert_array_equal(scaled.values_NF, [[1, -1, 0, 0, -1]])
    np.testing.assert_array_equal(scaled.clipped_NF, [[True, False, False, False, True]])


@pytest.mark.parametrize("config", [MINMAX, ZSCORE], ids=lambda c: c.scaling)
def test_missing_value_becomes_0(config):
    """A missing value is scaled to 0 and marked as imputed, not as clipped."""
    scaled = RadiomicsScaler.fit(FITTED, config).transform(np.full((2, 5), np.nan))
    assert (scaled.values_NF == 0).all()
    assert scaled.imputed_NF.all()
    assert not scaled.clipped_NF.any()


@pytest.mark.parametrize("config", [MINMAX, ZSCORE], ids=lambda c: c.scaling)
def test_missing_values_do_not_affect_fit(config):
    """The fit ignores missing values."""
    complete = RadiomicsScaler.fit(np.array([[1.0], [3.0]]), config)
    incomplete = RadiomicsScaler.fit(np.array([[1.0], [np.nan], [3.0], [np.nan]]), config)
    assert (complete.centre_F, complete.half_width_F) == (incomplete.centre_F, incomplete.half_width_F)


@pytest.mark.parametrize("config", [MINMAX, ZSCORE], ids=lambda c: c.scaling)
def test_constant_or_missing_feature_is_always_0(config):
    """A feature that was constant or entirely missing in the fitted cases is 0 for any value."""
    scaled = RadiomicsScaler.fit(FITTED, config).transform(np.array([[0.0, 0.0, 7000.0, 3.0, 0.0]]))
    assert (scaled.values_NF[0, 2:4] == 0).all()


@pytest.mark.parametrize("config", [MINMAX, ZSCORE], ids=lambda c: c.scaling)
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12, 1e300])
def test_values_of_any_magnitude_scale_to_finite_numbers(config, scale):
    """Scaling is finite and independent of the unit for magnitudes from 1e-12 to 1e300."""
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


def test_ends_of_float_range_do_not_overflow():
    """Minmax handles a range that spans nearly all of float64."""
    fitted = np.array([[-1.7e308], [1.7e308], [0.0]])
    np.testing.assert_allclose(RadiomicsScaler.fit(fitted, MINMAX).transform(fitted).values_NF[:, 0], [-1, 1, 0])


def test_transform_does_not_change_the_fit():
    """Scaling further cases leaves the fitted parameters unchanged."""
    scaler = RadiomicsScaler.fit(FITTED, MINMAX)
    before = (scaler.centre_F.copy(), scaler.half_width_F.copy())
    scaler.transform(np.full((4, 5), 1e9))
    np.testing.assert_array_equal(scaler.centre_F, before[0])
    np.testing.assert_array_equal(scaler.half_width_F, before[1])


@pytest.mark.parametrize("config", [MINMAX, ZSCORE], ids=lambda c: c.scaling)
def test_saved_scaler_gives_identical_values(config, tmp_path):
    """A scaler that is saved and loaded gives bitwise equal values."""
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
def test_malformed_scaler_is_reported_as_damaged(change, tmp_path):
    """A file of another schema, or with wrong or missing fields, raises DamagedError."""
    data = {"schema": "tmi-scaler/1", "scaling": "minmax", "fitted_on": 3, "centre": [0, 0], "half_width": [1, 1]}
    (tmp_path / "scaler.json").write_text(json.dumps(data | change))
    with pytest.raises(DamagedError, match=r"scaler .*scaler\.json is malformed"):
        RadiomicsScaler.load(tmp_path / "scaler.json")
