"""Drift: whether the inputs and predictions of a cohort are distributed as those of the training. No patient data.

Training stores a summary of each monitored number: its deciles, and the shares of cases between them. A cohort of m
cases is counted in the same bins, of which the first holds missing values; p are shares of the n training cases, q of
the cohort::

    PSI = sum_b (q_b - p_b) ln(q_b / p_b)          population stability index; half a case is added to every bin
    D   = max_b |sum_(a<=b) (q_a - p_a)|           Kolmogorov and Smirnov's statistic on the bins

D on bins is at most that on the values, so its p-value is at most too large. Each fold has a summary of its own. PSI
and D of a number are means over the folds; its p-value is twice the median of the folds', which holds however they
depend on each other. Holm's method adjusts the p-values for the number of monitored numbers. PSI of a small cohort is
large without any drift, about (bins - 1) (1/n + 1/m): the p-value decides, PSI states the size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from tmi.toolkit.errors import UsageError
from tmi.toolkit.storage.serialization import to_json

EDGES = 9
"""Largest number of edges of a number's bins: the deciles."""
DRIFT_LEVEL = 0.05
"""Largest adjusted p-value at which a number has drifted."""
MIN_COHORT = 5
"""Smallest number of cases that is compared."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Deciles of S monitored numbers over some cases."""

    names: tuple[str, ...]
    """Names of the numbers, `modality.name` or `prediction.class`."""
    edges_SE: Float[np.ndarray, "S 9"]
    """Distinct deciles in ascending order, then infinity."""
    shares_SB: Float[np.ndarray, "S 11"]
    """Share of the cases that miss the number, then of those up to each edge and above the last."""
    counts_S: Int[np.ndarray, " S"]
    """Number of cases."""


@dataclass(frozen=True, kw_only=True)
class NumberDrift:
    """Comparison of one monitored number."""

    name: str
    """Its name."""
    psi: float
    """Population stability index."""
    ks: float
    """Kolmogorov and Smirnov's statistic D."""
    p_value: float
    """p-value of D."""
    p_adjusted: float
    """p-value after Holm's method."""
    missing: float
    """Share of the cohort that misses it."""
    missing_training: float
    """Share of the training cases that miss it."""
    drifted: bool
    """Whether the adjusted p-value is at most the level."""


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Comparison of a cohort with the training cases."""

    cases: int
    """Number of cases of the cohort."""
    level: float
    """Largest adjusted p-value at which a number has drifted."""
    numbers: tuple[NumberDrift, ...]
    """Every monitored number, the smallest p-value first."""

    @property
    def drifted(self) -> tuple[NumberDrift, ...]:
        """Numbers that have drifted."""
        return tuple(number for number in self.numbers if number.drifted)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values: dict[str, Any] = to_json(self)
        return values


def summarise(values: Mapping[str, Float[np.ndarray, " N"]]) -> Summary:
    """Summary of numbers by name, NaN where missing; at least one number with at least one case."""
    edges_SE = np.full((len(values), EDGES), np.inf)
    shares_SB = np.zeros((len(values), EDGES + 2))
    for row, values_N in enumerate(values.values()):
        known = np.asarray(values_N, np.float64)[np.isfinite(values_N)]
        if known.size:
            deciles = np.unique(np.quantile(known, np.linspace(0, 1, EDGES + 2)[1:-1]))
            edges_SE[row, : deciles.size] = deciles
        shares_SB[row] = _counts(np.asarray(values_N, np.float64), edges_SE[row]) / len(values_N)
    counts_S = np.array([len(values_N) for values_N in values.values()], np.int64)
    return Summary(names=tuple(values), edges_SE=edges_SE, shares_SB=shares_SB, counts_S=counts_S)


def join(first: Summary, second: Summary) -> Summary:
    """Summary of the numbers of both."""
    return Summary(
        names=(*first.names, *second.names),
        edges_SE=np.concatenate([first.edges_SE, second.edges_SE]),
        shares_SB=np.concatenate([first.shares_SB, second.shares_SB]),
        counts_S=np.concatenate([first.counts_S, second.counts_S]),
    )


def compare_cohort(
    folds: Sequence[Summary], values: Mapping[str, Float[np.ndarray, "..."]], *, level: float = DRIFT_LEVEL
) -> Drift:
    """Compare the numbers of a cohort with the summaries of each fold.

    Args:
        folds: summaries of the folds, of the same numbers.
        values: name -> values [N] of the cohort, or [F, N] of each fold for it, NaN where missing; numbers without a
            summary are left out.
        level: largest adjusted p-value at which a number has drifted.

    Raises:
        UsageError: fewer than `MIN_COHORT` cases, or no number that the folds monitor.
    """
    names = [name for name in folds[0].names if name in values] if folds else []
    if not names:
        raise UsageError("no number of the cohort is monitored", fix="use a bundle that this version trained")
    cases = int(np.shape(values[names[0]])[-1])
    if cases < MIN_COHORT:
        raise UsageError(f"{cases} cases are too few to compare", fix=f"give at least {MIN_COHORT} cases")
    found = []
    for name in names:
        by_fold = np.broadcast_to(np.asarray(values[name], np.float64), (len(folds), cases))
        psi, ks, p_values = zip(
            *(_compare(fold, fold.names.index(name), x_N) for fold, x_N in zip(folds, by_fold, strict=True)),
            strict=True,
        )
        missing_training = float(np.mean([fold.shares_SB[fold.names.index(name), 0] for fold in folds]))
        found.append(
            NumberDrift(
                name=name,
                psi=float(np.mean(psi)),
                ks=float(np.mean(ks)),
                p_value=min(1.0, (2.0 if len(folds) > 1 else 1.0) * float(np.median(p_values))),
                p_adjusted=1.0,
                missing=float(np.isnan(by_fold[0]).mean()),
                missing_training=missing_training,
                drifted=False,
            )
        )
    found.sort(key=lambda number: (number.p_value, -number.psi))
    return Drift(cases=cases, level=level, numbers=tuple(_holm(found, level)))


def _holm(ordered: Sequence[NumberDrift], level: float) -> list[NumberDrift]:
    """Adjusted p-values of numbers in ascending order of their p-values."""
    adjusted, largest = [], 0.0
    for rank, number in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - rank) * number.p_value))
        values = {**vars(number), "p_adjusted": largest, "drifted": largest <= level}
        adjusted.append(NumberDrift(**values))
    return adjusted


def _compare(fold: Summary, row: int, values_N: NDArray[np.float64]) -> tuple[float, float, float]:
    """PSI, D and its p-value of one number against one fold."""
    n, m = int(fold.counts_S[row]), len(values_N)
    p_B, counts_B = fold.shares_SB[row], _counts(values_N, fold.edges_SE[row])
    ks = float(np.abs(np.cumsum(counts_B / m - p_B)).max())
    used = (p_B > 0) | (counts_B > 0)
    bins = int(used.sum())
    smooth_p = (p_B[used] * n + 0.5) / (n + 0.5 * bins)
    smooth_q = (counts_B[used] + 0.5) / (m + 0.5 * bins)
    psi = float(((smooth_q - smooth_p) * np.log(smooth_q / smooth_p)).sum())
    return psi, ks, kolmogorov_p_value(ks, n * m / (n + m))


def _counts(values_N: NDArray[np.float64], edges_E: NDArray[np.float64]) -> NDArray[np.float64]:
    """Number of missing values, then of values up to each edge and above the last."""
    known = values_N[~np.isnan(values_N)]
    bins = np.searchsorted(edges_E, known, side="left")
    counts = np.bincount(bins, minlength=EDGES + 1).astype(np.float64)
    return np.concatenate([[len(values_N) - len(known)], counts])


def kolmogorov_p_value(ks: float, effective: float) -> float:
    """Asymptotic p-value of D for `effective` cases, with Stephens's correction for few (1970)."""
    root = math.sqrt(effective)
    scaled = (root + 0.12 + 0.11 / root) * ks
    if scaled < 0.2:  # the series converges slowly, and is 1 to 12 digits
        return 1.0
    terms = ((-1.0) ** (k - 1) * math.exp(-2.0 * (k * scaled) ** 2) for k in range(1, 101))
    return float(min(1.0, max(0.0, 2.0 * math.fsum(terms))))
