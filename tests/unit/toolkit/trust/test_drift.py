"""Drift: false alarms are rare, a shift and a change of missing values are found, summaries hold no case."""

from __future__ import annotations

import numpy as np
import pytest

from tmi.toolkit.errors import UsageError
from tmi.toolkit.trust import compare_cohort, join, summarise
from tmi.toolkit.trust.drift import kolmogorov_p_value

NAMES = [f"clinical.{i}" for i in range(20)]


def cohort(rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    """Twenty numbers, of which one is binary and a tenth is missing."""
    values = {name: np.where(rng.uniform(size=count) < 0.1, np.nan, rng.normal(size=count)) for name in NAMES}
    return values | {NAMES[0]: (rng.uniform(size=count) < 0.3).astype(float)}


def test_no_drift_is_no_alarm():
    """Of 60 cohorts of the training's law at most a few have any drifted number at level 0.05."""
    alarms = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        alarms += bool(compare_cohort([summarise(cohort(rng, 60)) for _ in range(3)], cohort(rng, 40)).drifted)
    assert alarms <= 8


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda x: x + 1.5, NAMES[3]),
        (lambda x: np.where(np.arange(len(x)) % 2 == 0, np.nan, x), NAMES[4]),
        (lambda x: np.ones(len(x)), NAMES[0]),
    ],
)
def test_changed_number_has_drifted(change, name):
    """A shift, more missing values and another share of a category are found, and named first."""
    rng = np.random.default_rng(1)
    new = cohort(rng, 80)
    new[name] = change(new[name])
    drift = compare_cohort([summarise(cohort(rng, 100)) for _ in range(3)], new)
    assert [number.name for number in drift.drifted] == [name]
    assert drift.numbers[0].psi > 0.25
    assert drift.to_dict()["numbers"][0]["name"] == name


def test_values_of_each_fold_are_compared_with_it():
    """A prediction differs between folds: row f is compared with fold f."""
    folds = [summarise({"prediction.bad": np.linspace(low, low + 1, 50)}) for low in (0.0, 10.0)]
    values = np.stack([np.linspace(0, 1, 50), np.linspace(10, 11, 50)])
    assert compare_cohort(folds, {"prediction.bad": values}).numbers[0].ks < 0.05
    assert compare_cohort(folds, {"prediction.bad": values[::-1]}).drifted


def test_p_value_is_scipys():
    """The p-value is that of Kolmogorov's distribution."""
    from scipy.stats import kstwobign

    for ks in (0.05, 0.1, 0.2, 0.4):
        scaled = (np.sqrt(50) + 0.12 + 0.11 / np.sqrt(50)) * ks
        assert kolmogorov_p_value(ks, 50) == pytest.approx(kstwobign.sf(scaled), abs=1e-9)


def test_summary_holds_deciles_alone():
    """Neither the smallest nor the largest value is in a summary; a number that nobody has is all missing."""
    summary = join(summarise({"a": np.arange(100.0)}), summarise({"b": np.full(5, np.nan)}))
    assert (summary.names, summary.counts_S.tolist()) == (("a", "b"), [100, 5])
    assert summary.edges_SE[0].min() > 5
    assert summary.edges_SE[0].max() < 95
    assert summary.shares_SB[1, 0] == 1.0


def test_few_cases_are_rejected():
    """Fewer than five cases cannot be compared."""
    with pytest.raises(UsageError, match="4 cases are too few"):
        compare_cohort([summarise({"a": np.arange(9.0)})], {"a": np.arange(4.0)})
