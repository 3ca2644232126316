"""Generative model: analytic ceilings and posteriors agree with sampled cases."""

from __future__ import annotations

import numpy as np
import pytest

from tmi.toolkit.errors import UsageError
from tmi.toolkit.synthetic.clinical_record import sample_blood, sample_information
from tmi.toolkit.synthetic.generative_model import (
    SIGNALS_BY_MODALITY,
    LatentSeverityModel,
    auc_ceilings,
    bayes_optimal_auc,
    empirical_auc,
    modality_subsets,
    posterior,
    sample_severity,
    sample_signals,
)

MODEL = LatentSeverityModel()


@pytest.fixture(scope="module")
def ceilings() -> dict[str, float]:
    return auc_ceilings(MODEL, sample_information(np.random.default_rng(0), 4000))


@pytest.fixture(scope="module")
def sampled() -> tuple[dict[str, list[float]], list[bool]]:
    """Posteriors and outcomes of 5,000 cases, sampled as in a cohort."""
    rng = np.random.default_rng(11)
    scores: dict[str, list[float]] = {name: [] for name in modality_subsets()}
    outcomes = []
    for _ in range(5000):
        bad = bool(rng.random() < MODEL.prevalence)
        signals = sample_signals(rng, sample_severity(rng, bad=bad, model=MODEL), MODEL)
        observations = {k: (getattr(signals, k), MODEL.precision(k)) for k in ("liver", "portal", "deposit")}
        blood = sample_blood(rng, MODEL.standardized("blood", signals.blood))
        observations["blood"] = MODEL.blood_observation(*blood.observation())
        for name, subset in modality_subsets().items():
            scores[name].append(
                posterior([observations[s] for s in {s for m in subset for s in SIGNALS_BY_MODALITY[m]}], MODEL)
            )
        outcomes.append(bad)
    return scores, outcomes


def test_ceiling_grows_with_modalities(ceilings):
    """Every modality adds to the ceiling of a set, and all ceilings are below 0.95."""
    singles, pairs, triple = ({n: v for n, v in ceilings.items() if n.count("+") == k} for k in (0, 1, 2))
    assert set(singles) == set(SIGNALS_BY_MODALITY)
    assert all(0.75 < v < 0.87 for v in singles.values())
    assert all(ceilings[pair] > max(ceilings[m] for m in pair.split("+")) + 0.03 for pair in pairs)
    assert triple["ct+radiomics+clinical"] > max(pairs.values()) + 0.02
    assert 0.91 < triple["ct+radiomics+clinical"] < 0.95


@pytest.mark.parametrize("name", modality_subsets())
def test_ceiling_equals_empirical_auc(name, ceilings, sampled):
    """The integrated ceiling equals the AUC of the posterior on 5,000 sampled cases."""
    scores, outcomes = sampled
    assert empirical_auc(scores[name], outcomes) == pytest.approx(ceilings[name], abs=0.015)


def test_auc_integral_equals_monte_carlo():
    """For a single precision, the integral equals a Monte Carlo estimate."""
    rng = np.random.default_rng(5)
    severity = rng.normal(size=500_000)
    signal = severity + rng.normal(size=severity.size) / np.sqrt(0.8)
    bad = severity > MODEL.threshold
    ranks = np.empty(signal.size)
    ranks[np.argsort(signal)] = np.arange(1, signal.size + 1)
    n = int(bad.sum())
    auc = (ranks[bad].sum() - n * (n + 1) / 2) / (n * (signal.size - n))
    assert bayes_optimal_auc(np.array([0.8]), MODEL) == pytest.approx(auc, abs=0.002)


def test_auc_limits_are_chance_and_certainty():
    """The AUC tends to 0.5 at precision 0 and to 1 at infinite precision."""
    assert bayes_optimal_auc(np.array([1e-9]), MODEL) == pytest.approx(0.5, abs=1e-4)
    assert bayes_optimal_auc(np.array([1e6]), MODEL) == pytest.approx(1.0, abs=2e-3)


def test_posterior_is_calibrated(sampled):
    """The posterior equals the observed frequency of the outcome."""
    scores, outcomes = sampled
    value, bad = np.array(scores["ct+radiomics+clinical"]), np.array(outcomes)
    for low in (0.1, 0.4, 0.7):
        chosen = (value > low) & (value < low + 0.2)
        error = 4 * 0.5 / np.sqrt(chosen.sum())
        assert bad[chosen].mean() == pytest.approx(value[chosen].mean(), abs=error)


def test_sampled_severity_matches_outcome():
    """The sampled severity lies on the outcome's side of the threshold."""
    rng = np.random.default_rng(1)
    assert all(sample_severity(rng, bad=True, model=MODEL) > MODEL.threshold for _ in range(300))
    assert all(sample_severity(rng, bad=False, model=MODEL) <= MODEL.threshold for _ in range(300))


def test_standardised_signals_have_unit_variance():
    """Standardised signals have unit variance."""
    rng = np.random.default_rng(2)
    signals = [sample_signals(rng, float(z), MODEL) for z in rng.normal(size=4000)]
    for name in ("liver", "portal", "deposit", "blood"):
        values = [MODEL.standardized(name, getattr(s, name)) for s in signals]
        assert np.std(values) == pytest.approx(1.0, abs=0.05)


def test_empirical_auc_counts_ties_half():
    """Ties count half; the AUC of a single class is None."""
    assert empirical_auc([0.2, 0.5, 0.5, 0.9], [False, False, True, True]) == 0.875
    assert empirical_auc([0.2, 0.5], [True, True]) is None


def test_posterior_without_information_is_prior():
    """Without laboratory values, the posterior is the prevalence."""
    assert posterior([MODEL.blood_observation(0.0, 0.0)], MODEL) == pytest.approx(MODEL.prevalence)


@pytest.mark.parametrize("invalid", [{"prevalence": 1.0}, {"liver": 0.0}, {"blood": -1.0}])
def test_invalid_parameters_are_rejected(invalid):
    """A prevalence or precision out of range is a usage error."""
    with pytest.raises(UsageError, match="prevalence or precision out of range"):
        LatentSeverityModel(**invalid)
