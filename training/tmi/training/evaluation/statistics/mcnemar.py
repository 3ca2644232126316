"""McNemar's exact test of two classifiers on the same cases.

Let b cases be correct only by the first classifier and c only by the second. Under the null hypothesis
b ~ Binomial(b + c, 1/2). Two-sided: p = min(1, 2 P(X <= min(b, c))). Cases are assumed to be independent.
Source: Q. McNemar 1947; exact form as in A. Agresti, Categorical Data Analysis.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool


class McNemar(NamedTuple):
    """Result of the test."""

    first_only: int
    """Number of cases that only the first classifier decides correctly (b)."""
    second_only: int
    """Number of cases that only the second classifier decides correctly (c)."""
    p: float
    """Two-sided exact p-value; 1 if both are correct on the same cases."""


def mcnemar_test(first_correct_N: Bool[np.ndarray, " N"], second_correct_N: Bool[np.ndarray, " N"]) -> McNemar:
    """Compare the correctness of two classifiers on the same cases."""
    from scipy.stats import binomtest

    b = int((first_correct_N & ~second_correct_N).sum())
    c = int((~first_correct_N & second_correct_N).sum())
    p = float(binomtest(min(b, c), b + c, 0.5).pvalue) if b + c else 1.0
    return McNemar(first_only=b, second_only=c, p=p)
