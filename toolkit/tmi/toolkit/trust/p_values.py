"""p-values of a case against the held-out training cases, and the verdict at a level.

A held-out case i is scored by the fold f(i) that was not trained on it, a new case x by every fold f (cross-conformal,
Vovk 2015). n held-out cases in all folds::

    p = (1 + #{i : s_f(i)(i) >= s_f(i)(x)}) / (n + 1)

p is at most `level` for a share of about `level` of cases like the training's. The smallest possible p-value is
1 / (n + 1): with fewer than 1 / level - 1 held-out cases no case can be found strange at that level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tmi.toolkit.errors import UsageError
from tmi.toolkit.storage.serialization import to_json
from tmi.toolkit.trust.statistics import JOINT, FoldTrust

TRUST_LEVEL = 0.05
"""Level that an export records in the manifest."""
Verdict = Literal["trusted", "not-trusted", "too-few-cases"]


@dataclass(frozen=True, kw_only=True)
class Trust:
    """Whether a case is like the training cases."""

    verdict: Verdict
    """`not-trusted`: out of distribution at `level`; `too-few-cases`: `level` cannot be reached with so few cases."""
    p_value: float
    """Joint p-value over all modalities, which decides."""
    p_values: Mapping[str, float]
    """Modality -> its p-value."""
    level: float
    """Largest joint p-value at which a case is not trusted."""
    cases: int
    """Number n of held-out training cases."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return to_json(self)


def smallest_p_value(cases: int) -> float:
    """Smallest possible p-value against so many held-out cases."""
    return 1.0 / (cases + 1)


def require_level(level: float) -> float:
    """Return a level after checking that it is a probability below 1.

    Raises:
        UsageError: it is not above 0 and below 1.
    """
    if not 0.0 < level < 1.0:
        raise UsageError(f"a trust level of {level:g} is no probability between 0 and 1", fix="give one such as 0.05")
    return level


def assess(folds: Sequence[FoldTrust], scores: Sequence[Mapping[str, float]], *, level: float) -> Trust:
    """Compare the scores of one case with those of the held-out cases of every fold.

    Args:
        folds: statistics of the folds.
        scores: scores of the case by each fold, by modality and `joint` (`FoldTrust.scores`).
        level: largest joint p-value at which the case is not trusted.
    """
    cases = sum(fold.held_out for fold in folds)
    p_values = {
        name: (1 + sum(_at_least(f.calibration[name], s[name]) for f, s in zip(folds, scores, strict=True)))
        / (cases + 1)
        for name in scores[0]
    }
    joint = p_values.pop(JOINT)
    verdict: Verdict = "not-trusted" if joint <= level else "trusted"
    if smallest_p_value(cases) > level:
        verdict = "too-few-cases"
    return Trust(verdict=verdict, p_value=joint, p_values=p_values, level=level, cases=cases)


def _at_least(sorted_n: np.ndarray, score: float) -> int:
    """Number of sorted scores that are at least `score`."""
    return len(sorted_n) - int(np.searchsorted(sorted_n, score, side="left"))
