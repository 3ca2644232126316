"""Generative model of a synthetic cohort: a latent severity, four noisy signals of it, and the Bayes-optimal AUCs.

The latent severity is z ~ N(0, 1). A patient has outcome `bad` if z > t, where t is the (1 - prevalence) quantile. A
signal k observes z with noise: x_k = z + e_k, e_k ~ N(0, 1/p_k) with precision p_k, independent of all else. Each
modality contains some of the signals (`SIGNALS_BY_MODALITY`). With the total precision p = sum p_k and the weighted
mean w = sum p_k x_k / p, the posterior is

    z | x ~ N(p w / (1 + p), 1 / (1 + p)),      P(bad | x) = Phi((p w / (1 + p) - t) * sqrt(1 + p)).

The blood signal is observed through laboratory values only: v_j = lambda_j u + sqrt(1 - lambda_j^2) e_j, with the
standardized blood signal u. The available values determine u with precision I = sum lambda_j^2 / (1 - lambda_j^2),
hence z with precision 1 / (1/p_blood + (1 + 1/p_blood) / I). I differs between cases because values are missing.

No score ranks cases better than P(bad | x) (Neyman and Pearson), so its AUC is the upper bound for every model with the
input x. The bound is integrated over the distribution, not estimated from the sampled cases.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.errors import UsageError

FloatArray = NDArray[np.float64]
_NORMAL = NormalDist()

SIGNALS_BY_MODALITY: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"ct": ("liver", "portal"), "radiomics": ("liver", "deposit"), "clinical": ("blood",)}
)
"""Modality -> its signals. `liver` (surface, texture and attenuation of the liver) is part of both the image and the
features of its mask, so these two modalities are partly redundant, as in practice."""


@dataclass(frozen=True, kw_only=True)
class LatentSeverityModel:
    """Parameters of the distribution. A precision is 1/variance of a signal's noise; the severity has variance 1."""

    prevalence: float = 75 / 184
    """Fraction of patients with outcome `bad`; default from the paper's cohort."""
    liver: float = 0.30
    """Precision of the liver signal: nodular surface, coarse texture, attenuation, shrinkage."""
    portal: float = 0.85
    """Precision of the portal signal: spleen, varices, ascites; all outside the liver."""
    deposit: float = 0.85
    """Precision of the deposit signal: attenuation of dense deposits, above the CT window."""
    blood: float = 1.40
    """Precision of the blood signal, before the noise of the laboratory values."""

    def __post_init__(self) -> None:
        values = (self.liver, self.portal, self.deposit, self.blood)
        if not 0.0 < self.prevalence < 1.0 or min(values) <= 0.0:
            raise UsageError(
                "severity: prevalence or precision out of range",
                fix="give a prevalence between 0 and 1 and precisions above 0",
            )

    @property
    def threshold(self) -> float:
        """Severity t above which the outcome is `bad`."""
        return _NORMAL.inv_cdf(1.0 - self.prevalence)

    def precision(self, signal: str) -> float:
        """Return the precision of a signal."""
        value: float = getattr(self, signal)
        return value

    def blood_observation(self, estimate: float, information: float) -> tuple[float, float]:
        """Convert an estimate of u and its precision I into an observation of the severity: value and precision."""
        noise_variance = 1.0 / self.blood
        if information <= 0.0:
            return 0.0, 0.0
        # u = x_blood / sqrt(1 + 1/p_blood), so undoing the scaling multiplies the variance 1/I by (1 + 1/p_blood)
        value = estimate * math.sqrt(1.0 + noise_variance)
        return value, 1.0 / (noise_variance + (1.0 + noise_variance) / information)

    def standardized(self, signal: str, value: float) -> float:
        """Scale a sampled signal to unit variance; phantom and record are generated from the scaled signals."""
        return value / math.sqrt(1.0 + 1.0 / self.precision(signal))


@dataclass(frozen=True, kw_only=True)
class Signals:
    """Signals of one case: x_k = severity + noise."""

    liver: float
    """Part of the CT and of the radiomics."""
    portal: float
    """Part of the CT only."""
    deposit: float
    """Part of the radiomics only: the CT window clips it."""
    blood: float
    """Part of the clinical record only."""


def sample_severity(rng: np.random.Generator, *, bad: bool, model: LatentSeverityModel) -> float:
    """Sample the severity given the outcome: a truncated normal, by inversion of the cumulative distribution."""
    split = 1.0 - model.prevalence
    low, high = (split, 1.0) if bad else (0.0, split)
    # clipped because inv_cdf is infinite at 0 and 1
    return _NORMAL.inv_cdf(min(max(low + (high - low) * rng.random(), 1e-12), 1.0 - 1e-12))


def sample_signals(rng: np.random.Generator, severity: float, model: LatentSeverityModel) -> Signals:
    """Sample the four signals of one case."""
    names = ("liver", "portal", "deposit", "blood")
    return Signals(**{n: severity + float(rng.normal()) / math.sqrt(model.precision(n)) for n in names})


def posterior(observations: Iterable[tuple[float, float]], model: LatentSeverityModel) -> float:
    """Return P(bad | observations); an observation is a value x_k = z + noise and its precision p_k."""
    pairs = list(observations)
    total = sum(p for _, p in pairs)
    mean = sum(x * p for x, p in pairs) / (1.0 + total)
    return _NORMAL.cdf((mean - model.threshold) * math.sqrt(1.0 + total))


def clinical_precision(information: FloatArray, model: LatentSeverityModel) -> FloatArray:
    """Return the precision at which laboratory values of total `information` I determine the severity."""
    return np.array([model.blood_observation(0.0, float(i))[1] for i in information])


def modality_subsets() -> dict[str, tuple[str, ...]]:
    """Return every non-empty set of modalities by its name, such as `ct+clinical`; smaller sets first."""
    names = tuple(SIGNALS_BY_MODALITY)
    return {"+".join(c): c for size in (1, 2, 3) for c in combinations(names, size)}


def image_precision(modalities: Iterable[str], model: LatentSeverityModel) -> float:
    """Return the total precision of the modalities' signals except blood; a shared signal is counted once."""
    signals = {signal for m in modalities for signal in SIGNALS_BY_MODALITY[m]} - {"blood"}
    return sum(model.precision(s) for s in sorted(signals))


def auc_ceilings(model: LatentSeverityModel, information: FloatArray, *, levels: int = 64) -> dict[str, float]:
    """Return the highest AUC that each set of modalities allows.

    Args:
        model: the generative model.
        information: a large sample of the precision I of the laboratory values; I varies with the missing values.
        levels: number of equally likely values that the sample is reduced to.
    """
    ranks = np.sort(information)
    blocks = np.array([block.mean() for block in np.array_split(ranks, min(levels, ranks.size))])
    blood = clinical_precision(blocks, model)
    ceilings = {}
    for name, modalities in modality_subsets().items():
        precision = image_precision(modalities, model) + (blood if "clinical" in modalities else np.zeros(1))
        ceilings[name] = bayes_optimal_auc(precision, model)
    return ceilings


def bayes_optimal_auc(precision: FloatArray, model: LatentSeverityModel) -> float:
    """Return the AUC of P(bad | x) for cases whose total precision takes the given, equally likely values.

    The posterior mean is m ~ N(0, p/(1+p)). Each node (p, m) of the integration grid has a mass and a P(bad), and
    AUC = sum_ij mass_i P_i mass_j (1 - P_j) [P_i > P_j, ties half] / (P(bad) P(good)).
    """
    unit = np.linspace(-7.0, 7.0, 1401)
    mass = np.tile(np.exp(-0.5 * unit**2), precision.size)
    mean = np.sqrt(precision / (1.0 + precision))[:, None] * unit
    score = ((mean - model.threshold) * np.sqrt(1.0 + precision)[:, None]).ravel()
    bad = np.array([_NORMAL.cdf(float(s)) for s in score])
    # sorted by score, the double sum over pairs becomes a cumulative sum
    order = np.argsort(score, kind="stable")
    bad_mass, good_mass = (mass * bad)[order], (mass * (1.0 - bad))[order]
    below = np.cumsum(good_mass) - 0.5 * good_mass
    return float((bad_mass * below).sum() / (bad_mass.sum() * good_mass.sum()))


def empirical_auc(scores: Iterable[float], bad: Iterable[bool]) -> float | None:
    """Return the AUC of scores on sampled cases, ties half (Mann and Whitney); None if a class is empty."""
    value, positive = np.array(list(scores), dtype=np.float64), np.array(list(bad), dtype=bool)
    if positive.all() or not positive.any():
        return None
    difference = value[positive][:, None] - value[~positive][None, :]
    return float(((difference > 0).sum() + 0.5 * (difference == 0).sum()) / difference.size)
