"""The law behind a synthetic cohort: one latent severity, four noisy signals of it, and the best AUC each allows.

Severity z ~ N(0, 1); a patient is bad where z exceeds the quantile that leaves `prevalence` above it. A signal k shows
z in part: x_k = z + e_k, e_k ~ N(0, 1/p_k) with precision p_k, independent of all else. A modality shows some of the
signals (`SIGNALS_BY_MODALITY`). Given signals of total precision p = sum p_k and weighted mean w = sum p_k x_k / p,

    z | x ~ N(p w / (1 + p), 1 / (1 + p)),      P(bad | x) = Phi((p w / (1 + p) - t) * sqrt(1 + p)).

The blood signal is not seen itself but through laboratory values, each lambda_j u + sqrt(1 - lambda_j^2) noise of the
standardized signal u; together the values present tell u with precision I = sum lambda_j^2 / (1 - lambda_j^2), hence z
with precision 1 / (1/p_blood + (1 + 1/p_blood) / I). I differs by case because values are missing.

No score ranks better than P(bad | x) (Neyman and Pearson), so its AUC is the ceiling of everything that sees x alone.
It is integrated over the law here, not measured on the drawn cases.
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
"""Which signals a modality shows. `liver` (surface, texture and attenuation of the liver) stands in the image and in
the features of its mask alike, so those two are partly redundant, as they are in life."""


@dataclass(frozen=True, kw_only=True)
class LatentSeverityModel:
    """Parameters of the law; a precision is 1/variance of a signal's error, against severity's variance of 1."""

    prevalence: float = 75 / 184
    """Part of the patients with a bad prognosis; the paper's cohort."""
    liver: float = 0.30
    """Precision of the liver signal: nodular surface, coarse texture, attenuation, shrinking."""
    portal: float = 0.85
    """Precision of the portal signal: spleen, varices, ascites; all away from the liver."""
    deposit: float = 0.85
    """Precision of the deposit signal: attenuation of dense deposits, above the CT window."""
    blood: float = 1.40
    """Precision of the blood signal, before the laboratory values blur it."""

    def __post_init__(self) -> None:
        values = (self.liver, self.portal, self.deposit, self.blood)
        if not 0.0 < self.prevalence < 1.0 or min(values) <= 0.0:
            raise UsageError("severity: prevalence or precision out of range", fix="give a part of 1, precisions > 0")

    @property
    def threshold(self) -> float:
        """Severity from which a patient is bad."""
        return _NORMAL.inv_cdf(1.0 - self.prevalence)

    def precision(self, signal: str) -> float:
        """Precision of a signal by name."""
        value: float = getattr(self, signal)
        return value

    def blood_observation(self, reading: float, information: float) -> tuple[float, float]:
        """Severity as laboratory values tell it: value and precision, from a reading of u and its precision I."""
        error = 1.0 / self.blood
        if information <= 0.0:
            return 0.0, 0.0
        return reading * math.sqrt(1.0 + error), 1.0 / (error + (1.0 + error) / information)

    def standardized(self, signal: str, value: float) -> float:
        """A drawn signal scaled to unit variance; what the phantom and the record are made from."""
        return value / math.sqrt(1.0 + 1.0 / self.precision(signal))


@dataclass(frozen=True, kw_only=True)
class Signals:
    """What one case shows of its patient's severity: x_k = severity + error."""

    liver: float
    """Seen in the CT and in the radiomics."""
    portal: float
    """Seen in the CT alone."""
    deposit: float
    """Seen in the radiomics alone: the CT window clips it away."""
    blood: float
    """Seen in the clinical record alone."""


def sample_severity(rng: np.random.Generator, *, bad: bool, model: LatentSeverityModel) -> float:
    """A severity from the law given the outcome (truncated normal, by inversion)."""
    split = 1.0 - model.prevalence
    low, high = (split, 1.0) if bad else (0.0, split)
    return _NORMAL.inv_cdf(min(max(low + (high - low) * rng.random(), 1e-12), 1.0 - 1e-12))


def sample_signals(rng: np.random.Generator, severity: float, model: LatentSeverityModel) -> Signals:
    """The four signals of one case."""
    names = ("liver", "portal", "deposit", "blood")
    return Signals(**{n: severity + float(rng.normal()) / math.sqrt(model.precision(n)) for n in names})


def posterior(observations: Iterable[tuple[float, float]], model: LatentSeverityModel) -> float:
    """P(bad | observations), each a value x_k = z + error and its precision."""
    seen = list(observations)
    total = sum(p for _, p in seen)
    mean = sum(x * p for x, p in seen) / (1.0 + total)
    return _NORMAL.cdf((mean - model.threshold) * math.sqrt(1.0 + total))


def clinical_precision(information: FloatArray, model: LatentSeverityModel) -> FloatArray:
    """Precision with which laboratory values of total `information` I tell the severity."""
    return np.array([model.blood_observation(0.0, float(i))[1] for i in information])


def modality_subsets() -> dict[str, tuple[str, ...]]:
    """Every non-empty set of modalities by its name, such as `ct+clinical`; singles first."""
    names = tuple(SIGNALS_BY_MODALITY)
    return {"+".join(c): c for size in (1, 2, 3) for c in combinations(names, size)}


def image_precision(modalities: Iterable[str], model: LatentSeverityModel) -> float:
    """Total precision of the signals that the modalities show, a shared one counted once; blood left out."""
    seen = {signal for m in modalities for signal in SIGNALS_BY_MODALITY[m]} - {"blood"}
    return sum(model.precision(s) for s in sorted(seen))


def auc_ceilings(model: LatentSeverityModel, information: FloatArray, *, levels: int = 64) -> dict[str, float]:
    """Best AUC reachable from each set of modalities.

    Args:
        model: the law.
        information: a large sample of I, the laboratory values' information, over which values are missing.
        levels: number of equally likely values that sample is reduced to.
    """
    ranks = np.sort(information)
    blocks = np.array([block.mean() for block in np.array_split(ranks, min(levels, ranks.size))])
    blood = clinical_precision(blocks, model)
    found = {}
    for name, modalities in modality_subsets().items():
        precision = image_precision(modalities, model) + (blood if "clinical" in modalities else np.zeros(1))
        found[name] = bayes_optimal_auc(precision, model)
    return found


def bayes_optimal_auc(precision: FloatArray, model: LatentSeverityModel) -> float:
    """AUC of P(bad | x) over cases whose total precision takes the given, equally likely values.

    The posterior mean m ~ N(0, p/(1+p)); each node (p, m) of the grid carries its mass and its P(bad), and
    AUC = sum_ij mass_i P_i mass_j (1 - P_j) [P_i > P_j, ties half] / (P(bad) P(good)).
    """
    unit = np.linspace(-7.0, 7.0, 1401)
    mass = np.tile(np.exp(-0.5 * unit**2), precision.size)
    mean = np.sqrt(precision / (1.0 + precision))[:, None] * unit
    score = ((mean - model.threshold) * np.sqrt(1.0 + precision)[:, None]).ravel()
    bad = np.array([_NORMAL.cdf(float(s)) for s in score])
    order = np.argsort(score, kind="stable")
    bad_mass, good_mass = (mass * bad)[order], (mass * (1.0 - bad))[order]
    below = np.cumsum(good_mass) - 0.5 * good_mass
    return float((bad_mass * below).sum() / (bad_mass.sum() * good_mass.sum()))


def empirical_auc(scores: Iterable[float], bad: Iterable[bool]) -> float | None:
    """AUC of scores on drawn cases, ties half (Mann and Whitney); None where a class is empty."""
    value, positive = np.array(list(scores), dtype=np.float64), np.array(list(bad), dtype=bool)
    if positive.all() or not positive.any():
        return None
    difference = value[positive][:, None] - value[~positive][None, :]
    return float(((difference > 0).sum() + 0.5 * (difference == 0).sum()) / difference.size)
