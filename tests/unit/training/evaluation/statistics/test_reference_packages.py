"""Statistics of a comparison against independent implementations: statsmodels and MLstatkit."""

from __future__ import annotations

import numpy as np
import pytest

from tmi.training.evaluation.statistics.delong import delong_test
from tmi.training.evaluation.statistics.holm import holm_correction
from tmi.training.evaluation.statistics.mcnemar import mcnemar_test


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("digits", [1, 12], ids=["tied", "distinct"])
def test_delong_matches_mlstatkit(seed, digits):
    """AUCs and the two-sided p-value equal MLstatkit's, with and without ties."""
    from MLstatkit import Delong_test

    random = np.random.default_rng(seed)
    positive = random.permutation(np.arange(90) < 33)
    first, second = np.round(random.normal(size=(2, 90)) + np.outer([1.0, 0.4], positive), digits)
    _, p, _, _, auc_first, auc_second, info = Delong_test(positive.astype(int), first, second)
    result = delong_test(positive, first, second)
    assert (result.first, result.second, result.p) == pytest.approx((auc_first, auc_second, p), rel=1e-9), info


@pytest.mark.parametrize("seed", range(4))
def test_holm_matches_statsmodels(seed):
    """Adjusted p-values equal statsmodels', with ties and ones among them."""
    from statsmodels.stats.multitest import multipletests

    p = [*np.random.default_rng(seed).uniform(size=9) ** 3, 0.01, 0.01, 1.0]
    assert holm_correction(p) == pytest.approx(multipletests(p, method="holm")[1].tolist(), rel=1e-12)


@pytest.mark.parametrize(("b", "c"), [(0, 1), (3, 3), (1, 7), (2, 10), (40, 61)])
def test_mcnemar_matches_statsmodels(b, c):
    """The exact p-value equals statsmodels'."""
    from statsmodels.stats.contingency_tables import mcnemar

    first = np.array([True] * b + [False] * c + [True] * 5 + [False] * 2)
    second = np.array([False] * b + [True] * c + [True] * 5 + [False] * 2)
    expected = mcnemar([[5, b], [c, 2]], exact=True).pvalue
    assert mcnemar_test(first, second).p == pytest.approx(expected, rel=1e-12)
