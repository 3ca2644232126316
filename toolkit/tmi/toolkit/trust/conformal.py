"""Class-conditional conformal prediction: the set of classes that a case may belong to, at a chosen coverage.

The score of a class is the log-odds against it, logit(other) - logit(class): larger is stranger. Each fold f stores the
sorted scores of its inner validation cases, by their true class. n_y calibration scores of class y in all folds, x a
new case, c the coverage (Vovk 2013)::

    p_y = (1 + sum_f #{i of class y in fold f : s_f(i) >= s_f(x, y)}) / (n_y + 1)
    set = {y : p_y > 1 - c}

Of the cases of each class, a share of about c has that class in its set: with one fold at least c in the mean over
calibration sets, as in split conformal prediction; with several the scores are pooled (cross-conformal, Vovk 2015).
A class is left out of a set at its smallest possible p-value 1 / (n_y + 1) at the earliest: a coverage above
n_y / (n_y + 1) cannot be given, and no set is made up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from tmi.toolkit.errors import UsageError
from tmi.toolkit.storage.serialization import to_json

COVERAGE = 0.9
"""Coverage of the sets unless another one is given."""
TIE = 1e-9
"""Rounding of a count that is compared with a share of cases."""


@dataclass(frozen=True, kw_only=True)
class PredictionSet:
    """Classes that a case may belong to."""

    coverage: float
    """Share of the cases of each class whose set holds their class."""
    classes: tuple[str, ...] | None
    """One class: a definite prediction; both: cannot tell; none: unlike the cases of either class. None: the coverage
    cannot be given."""
    p_values: Mapping[str, float]
    """Class -> its p-value."""
    cases: Mapping[str, int]
    """Class -> number of calibration scores in all folds."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values: dict[str, Any] = to_json(self)
        return values


def largest_coverage(cases: int) -> float:
    """Largest coverage that can be given with so many calibration scores of a class."""
    return cases / (cases + 1)


def require_coverage(coverage: float) -> float:
    """Return a coverage after checking that it is a probability.

    Raises:
        UsageError: it is not above 0 and below 1.
    """
    if not 0.0 < coverage < 1.0:
        raise UsageError(f"a coverage of {coverage:g} is no probability between 0 and 1", fix="give one such as 0.9")
    return coverage


def can_be_given(coverage: float, cases: int) -> bool:
    """Whether sets of this coverage can be made with so many calibration scores of a class."""
    return (1.0 - coverage) * (cases + 1) >= 1.0 - TIE


def class_scores(logits_NK: Float[np.ndarray, "N 2"]) -> Float[NDArray[np.float64], "N 2"]:
    """Log-odds against each of two classes."""
    logits = np.asarray(logits_NK, np.float64)
    scores: NDArray[np.float64] = logits[:, ::-1] - logits
    return scores


def prediction_set(
    folds: Sequence[Mapping[str, Float[np.ndarray, " n"]]],
    logits_FK: Float[np.ndarray, "F 2"],
    *,
    classes: Sequence[str],
    coverage: float,
) -> PredictionSet:
    """Set of one case.

    Args:
        folds: class -> sorted calibration scores, of each fold.
        logits_FK: logits of the case by each fold, with the folds' temperatures.
        classes: names of the classes.
        coverage: the coverage.
    """
    scores_FK = class_scores(logits_FK)
    counts = {name: sum(len(fold[name]) for fold in folds) for name in classes}
    at_least = {
        name: sum(
            len(fold[name]) - int(np.searchsorted(fold[name], scores_FK[f, k], side="left"))
            for f, fold in enumerate(folds)
        )
        for k, name in enumerate(classes)
    }
    kept = tuple(name for name in classes if at_least[name] + 1 > (1.0 - coverage) * (counts[name] + 1) + TIE)
    given = all(can_be_given(coverage, count) for count in counts.values())
    return PredictionSet(
        coverage=coverage,
        classes=kept if given else None,
        p_values={name: (at_least[name] + 1) / (counts[name] + 1) for name in classes},
        cases=counts,
    )


def set_text(found: PredictionSet | None) -> str:
    """A set in words, for a table."""
    if found is None:
        return "not assessed"
    if found.classes is None:
        return "cannot be given"
    return "{" + ", ".join(found.classes) + "}" + (" (cannot tell)" if len(found.classes) > 1 else "")


def set_sentence(found: PredictionSet | None) -> str:
    """One sentence on the set of a case."""
    if found is None:
        return "prediction set: not assessed, the bundle has no calibration scores"
    counts = ", ".join(f"{count} of {name}" for name, count in found.cases.items())
    if found.classes is None:
        most = min(largest_coverage(count) for count in found.cases.values())
        text = f"prediction set: a coverage of {found.coverage:.3g} cannot be given"
        return f"{text}, with {counts} in the calibration the largest is {most:.3f}"
    meaning = {0: "unlike the cases of either class", len(found.cases): "cannot tell"}.get(len(found.classes))
    text = f"prediction set at coverage {found.coverage:.3g}: {{{', '.join(found.classes)}}}"
    return f"{text}{'' if meaning is None else f', {meaning}'} (calibration cases: {counts})"
