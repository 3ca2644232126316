"""McNemar's exact test of two classifiers on the same cases.

Of the cases that exactly one of the two decides rightly, b are right by the first and c by the second alone; under the
null hypothesis b ~ Binomial(b + c, 1/2). Two-sided: p = min(1, 2 P(X <= min(b, c))). Cases count as independent.
Source: Q. McNemar 1947; exact form as in A. Agresti, Categorical Data Analysis.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool


class McNemar(NamedTuple):
    """Outcome of the test."""

    first_only: int
    """Cases that only the first classifier decides rightly (b)."""
    second_only: int
    """Cases that only the second does (c)."""
    p: float
    """Two-sided exact p-value; 1 where the two are right on the same cases."""


def mcnemar(first_correct_N: Bool[np.ndarray, " N"], second_correct_N: Bool[np.ndarray, " N"]) -> McNemar:
    """Compare which cases the two decide rightly."""
    from scipy.stats import binomtest

    b = int((first_correct_N & ~second_correct_N).sum())
    c = int((~first_correct_N & second_correct_N).sum())
    p = float(binomtest(min(b, c), b + c, 0.5).pvalue) if b + c else 1.0
    return McNemar(first_only=b, second_only=c, p=p)
