"""DeLong's test of two ROC AUCs on the same cases. m positive, n negative cases.

With psi(x, y) = 1 where x > y, 1/2 where x = y, else 0:

    AUC = mean psi(x_i, y_j);   V10_i = mean_j psi(x_i, y_j);   V01_j = mean_i psi(x_i, y_j)
    cov(AUC) = cov(V10) / m + cov(V01) / n;                     z = (AUC_1 - AUC_2) / sqrt(var of the difference)

V10 and V01 follow from midranks, in n log n (X. Sun and W. Xu 2014). Cases count as independent. Source: E. DeLong,
D. DeLong and D. Clarke-Pearson 1988.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float


class DeLong(NamedTuple):
    """Outcome of the test."""

    first: float
    """AUC of the first."""
    second: float
    """AUC of the second."""
    standard_error: float
    """Standard deviation of the difference."""
    p: float | None
    """Two-sided p-value; None where the difference varies not at all and is not 0."""


def delong(
    positive_N: Bool[np.ndarray, " N"], first_N: Float[np.ndarray, " N"], second_N: Float[np.ndarray, " N"]
) -> DeLong:
    """Compare two scores; higher is more positive.

    Raises:
        ValueError: fewer than two cases of a class.
    """
    from scipy.stats import norm

    m, n = int(positive_N.sum()), int((~positive_N).sum())
    if min(m, n) < 2:
        raise ValueError("DeLong's test needs two cases of each class")
    parts = [_components(positive_N, scores) for scores in (first_N, second_N)]
    auc = [float(v10.mean()) for v10, _ in parts]
    (a10, a01), (b10, b01) = parts
    # the variance of the difference of the components: exact where both scores rank alike
    variance = float(np.var(a10 - b10, ddof=1)) / m + float(np.var(a01 - b01, ddof=1)) / n
    deviation = variance**0.5
    difference = auc[0] - auc[1]
    if abs(difference) < 1e-12:
        p: float | None = 1.0
    else:
        p = float(2 * norm.sf(abs(difference) / deviation)) if deviation > 1e-12 else None
    return DeLong(first=auc[0], second=auc[1], standard_error=deviation, p=p)


def _components(
    positive_N: Bool[np.ndarray, " N"], scores_N: Float[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " n"]]:
    """V10 of the positive cases, V01 of the negative ones."""
    from scipy.stats import rankdata

    positive, negative = scores_N[positive_N], scores_N[~positive_N]
    m, n = len(positive), len(negative)
    together = rankdata(np.concatenate([positive, negative]))
    v10 = (together[:m] - rankdata(positive)) / n
    v01 = 1.0 - (together[m:] - rankdata(negative)) / m
    return v10, v01
