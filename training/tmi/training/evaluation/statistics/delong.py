"""DeLong's test of two ROC AUCs on the same cases. m positive, n negative cases.

With psi(x, y) = 1 if x > y, 1/2 if x = y, else 0:

    AUC = mean psi(x_i, y_j);   V10_i = mean_j psi(x_i, y_j);   V01_j = mean_i psi(x_i, y_j)
    cov(AUC) = cov(V10) / m + cov(V01) / n;                     z = (AUC_1 - AUC_2) / sqrt(var of the difference)

V10 and V01 are computed from midranks in O(n log n) (X. Sun and W. Xu 2014). Cases are assumed to be independent.
Source: E. DeLong, D. DeLong and D. Clarke-Pearson 1988.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float


class DeLong(NamedTuple):
    """Result of the test."""

    first: float
    """AUC of the first score."""
    second: float
    """AUC of the second score."""
    standard_error: float
    """Standard error of the difference."""
    p: float | None
    """Two-sided p-value; None if the standard error is 0 and the difference is not."""


def delong_test(
    positive_N: Bool[np.ndarray, " N"], first_N: Float[np.ndarray, " N"], second_N: Float[np.ndarray, " N"]
) -> DeLong:
    """Compare the AUCs of two scores; a higher score means more positive.

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
    # variance of the difference of the components: exactly 0 if both scores rank the cases alike
    variance = float(np.var(a10 - b10, ddof=1)) / m + float(np.var(a01 - b01, ddof=1)) / n
    standard_error = variance**0.5
    difference = auc[0] - auc[1]
    if abs(difference) < 1e-12:
        p: float | None = 1.0
    else:
        p = float(2 * norm.sf(abs(difference) / standard_error)) if standard_error > 1e-12 else None
    return DeLong(first=auc[0], second=auc[1], standard_error=standard_error, p=p)


def _components(
    positive_N: Bool[np.ndarray, " N"], scores_N: Float[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " n"]]:
    """V10 of the positive cases and V01 of the negative cases, from midranks."""
    from scipy.stats import rankdata

    positive, negative = scores_N[positive_N], scores_N[~positive_N]
    m, n = len(positive), len(negative)
    # rank among all cases minus rank within the class: the number of cases of the other class below
    ranks = rankdata(np.concatenate([positive, negative]))
    v10 = (ranks[:m] - rankdata(positive)) / n
    v01 = 1.0 - (ranks[m:] - rankdata(negative)) / m
    return v10, v01
