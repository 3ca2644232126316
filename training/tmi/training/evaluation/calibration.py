"""Temperature and decision threshold, fitted on a fold's inner validation predictions alone. N cases, K classes.

    p(T) = softmax(logits / T)        T = argmin  sum_n -log p_n(T)[y_n]  +  (log T)^2 / 2

The last term regularises T towards 1 with about the weight of one case. Without it, a few validation cases that the
model happens to separate would drive T to 0 and every probability to 0 or 1. The threshold has the highest balanced
accuracy on the calibrated validation predictions; ties are resolved towards 0.5. Source: C. Guo et al. 2017.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from tmi.toolkit.config.schema import POSITIVE, Config

LOG_TEMPERATURE_RANGE = 3.0
"""Bound of |log T| in the search: T from 0.05 to 20."""
ECE_BINS = 10
"""Number of equal-width bins of the expected calibration error."""
MIN_PROBABILITY = 1e-15
"""Probabilities are clipped to at least this before the logarithm."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Fitted temperature and threshold; the defaults mean no calibration."""

    temperature: float = 1.0
    """Divisor of the logits."""
    threshold: float = 0.5
    """Calibrated probability of the positive class at and above which the decision is positive."""
    fitted_on: int = 0
    """Number of validation cases; 0 if not fitted."""


def is_calibrated(config: Config) -> bool:
    """Whether a run of this config is calibrated.

    It is not with the protocol `released`, whose validation split is the held-out fold, which would leak; nor with a
    head that ends in a sigmoid, whose outputs are not logits.
    """
    return config.train.protocol == "grouped" and config.network.head.style == "logits"


def calibrate(logits_NK: Float[np.ndarray, "N K"], labels_N: Int[np.ndarray, " N"]) -> Calibration:
    """Fit temperature, then threshold; the same predictions give bit-identical results."""
    temperature = fit_temperature(logits_NK, labels_N)
    threshold = fit_threshold(positive_class_probability(logits_NK, temperature), labels_N)
    return Calibration(temperature=temperature, threshold=threshold, fitted_on=len(labels_N))


def positive_class_probability(
    logits_NK: Float[np.ndarray, "N K"], temperature: float = 1.0
) -> Float[np.ndarray, " N"]:
    """Probability of the positive class, softmax(logits / temperature), in float64."""
    scaled = np.asarray(logits_NK, dtype=np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    probability: np.ndarray = (exponentials / exponentials.sum(axis=1, keepdims=True))[:, POSITIVE]
    return probability


def fit_temperature(logits_NK: Float[np.ndarray, "N K"], labels_N: Int[np.ndarray, " N"]) -> float:
    """Fit the temperature by a grid over log T and Brent's method around its best point."""
    from scipy.optimize import minimize_scalar

    logits = np.asarray(logits_NK, dtype=np.float64)
    rows = np.arange(len(labels_N))

    def cost(log_t: float) -> float:
        scaled = logits * np.exp(-log_t)
        maximum = scaled.max(axis=1)
        log_sum_exp = maximum + np.log(np.exp(scaled - maximum[:, None]).sum(axis=1))
        return float((log_sum_exp - scaled[rows, labels_N]).sum()) + log_t**2 / 2

    grid = np.linspace(-LOG_TEMPERATURE_RANGE, LOG_TEMPERATURE_RANGE, 121)
    best = float(grid[int(np.argmin([cost(t) for t in grid]))])
    step = float(grid[1] - grid[0])
    minimum = minimize_scalar(cost, bounds=(best - step, best + step), method="bounded", options={"xatol": 1e-9})
    return float(np.exp(minimum.x))


def fit_threshold(probability_N: Float[np.ndarray, " N"], labels_N: Int[np.ndarray, " N"]) -> float:
    """Fit the threshold among 0.5 and the midpoints of neighbouring probabilities; 0.5 if only one class is present."""
    truth = np.asarray(labels_N) == POSITIVE
    if truth.all() or not truth.any():
        return 0.5
    values = np.unique(probability_N)
    candidates = np.array([0.5, *((values[1:] + values[:-1]) / 2)])
    decided = np.asarray(probability_N)[None, :] >= candidates[:, None]
    balanced = (decided[:, truth].mean(axis=1) + (~decided)[:, ~truth].mean(axis=1)) / 2
    # ties: nearest to 0.5, then the lower one
    best = candidates[balanced >= balanced.max() - 1e-12]
    return float(min(best, key=lambda c: (abs(c - 0.5), c)))


def calibration_metrics(labels_N: Int[np.ndarray, " N"], probability_N: Float[np.ndarray, " N"]) -> dict[str, float]:
    """Expected calibration error (of the positive class, `ECE_BINS` bins), Brier score and log loss."""
    truth = (np.asarray(labels_N) == POSITIVE).astype(np.float64)
    p = np.asarray(probability_N, dtype=np.float64)
    bins = np.minimum((p * ECE_BINS).astype(int), ECE_BINS - 1)
    gaps = [abs(float((truth[bins == b] - p[bins == b]).sum())) for b in range(ECE_BINS)]
    clipped = np.clip(p, MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    return {
        "ece": sum(gaps) / len(p),
        "brier": float(((p - truth) ** 2).mean()),
        "log_loss": float(-(truth * np.log(clipped) + (1 - truth) * np.log(1 - clipped)).mean()),
    }
