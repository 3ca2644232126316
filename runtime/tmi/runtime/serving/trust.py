"""Trust of a prediction: p-values of its case against the bundle's training cases, with a statement in words.

The statistics of each fold are compared with the features of the same fold's encoders, so nothing runs twice. A bundle
without statistics gives the same predictions, and states that trust was not assessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32
from numpy.typing import NDArray

from tmi.runtime.bundle.contents import bundled_trust
from tmi.runtime.bundle.reader import Bundle
from tmi.toolkit.errors import UsageError
from tmi.toolkit.issues.issue import Issue
from tmi.toolkit.preprocessing.pipeline import PreparedCase
from tmi.toolkit.run_folder import RunFolder
from tmi.toolkit.trust.conformal import PredictionSet, prediction_set, set_sentence, set_text
from tmi.toolkit.trust.measurements import case_parts, volume_statistics
from tmi.toolkit.trust.p_values import TRUST_LEVEL, Trust, assess, require_level, smallest_p_value
from tmi.toolkit.trust.statistics import FoldTrust

NOT_TRUSTED = "not-trusted"
"""Code of the alert, and the decision, of a case that is out of distribution."""
NOT_ASSESSED = "trust: not assessed, the bundle has no statistics of its training cases"
TRUST_FIX = "compare scanner, contrast phase, mask and units of the record with those of the training cases"


@dataclass(frozen=True, kw_only=True)
class FoldMeasurement:
    """What one fold computed of a case; None: the fold does not use it."""

    ct_C: Float32[NDArray[np.float32], "C"] | None = None
    """Features of its CT encoder."""
    text_C: Float32[NDArray[np.float32], "C"] | None = None
    """Features of its text encoder."""
    radiomics_R: Float32[NDArray[np.float32], "R"] | None = None
    """Radiomics scaled by its scaler."""
    clipped_R: Bool[NDArray[np.bool_], "R"] | None = None
    """Features outside its training range."""


class TrustAssessor:
    """Statistics of the folds of a bundle or run.

    Args:
        folds: statistics of each fold; empty: trust is not assessed.
        level: largest joint p-value at which a case is not trusted; None: that of an export.
        image: whether the models use the CT.
        kind: `bundle` or `run`, for messages.

    Raises:
        UsageError: a level without statistics, or one that is no probability.
    """

    def __init__(
        self, folds: Sequence[FoldTrust], *, level: float | None = None, image: bool = True, kind: str = "bundle"
    ) -> None:
        if not folds and level is not None:
            raise UsageError(
                f"the {kind} has no statistics of its training cases, so it cannot assess trust at a level",
                fix="omit --trust-level, or train with this version and export again",
            )
        self._folds, self._image, self._kind = tuple(folds), image, kind
        self._level = require_level(TRUST_LEVEL if level is None else level)

    @classmethod
    def of_bundle(cls, bundle: Bundle, *, level: float | None = None) -> TrustAssessor:
        """Assessor of a bundle; a level of None is the manifest's.

        Raises:
            UsageError: as above.
            DamagedError: a file of the statistics is malformed.
        """
        record = bundle.manifest.trust
        level = level if level is not None or record is None else record.level
        return cls(bundled_trust(bundle), level=level, image=bundle.manifest.uses("image"))

    @classmethod
    def of_run(cls, run: RunFolder, *, image: bool) -> TrustAssessor:
        """Assessor of a run at the level of an export; one without statistics of every fold assesses nothing.

        Raises:
            DamagedError: a file of the statistics is malformed.
        """
        files = [(split.fold, run.fold(split.fold).trust) for split in run.folds]
        known = all(path.is_file() for _, path in files)
        return cls([FoldTrust.load(path, fold=fold) for fold, path in files] if known else [], image=image, kind="run")

    @property
    def assesses(self) -> bool:
        """Whether there are statistics."""
        return bool(self._folds)

    def select(self, folds: Sequence[int], *, level: float | None = None) -> TrustAssessor:
        """Assessor of some folds, by number and in this order; a level of None is this one's.

        Raises:
            UsageError: as in the constructor.
        """
        by_number = {statistics.fold: statistics for statistics in self._folds}
        chosen = [by_number[fold] for fold in folds] if self._folds else []
        level = self._level if level is None and chosen else level
        return TrustAssessor(chosen, level=level, image=self._image, kind=self._kind)

    def prediction_set(
        self, logits_FK: Float[np.ndarray, "F K"], *, classes: Sequence[str], coverage: float
    ) -> PredictionSet | None:
        """Set of classes of one case from its logits by each fold; None without calibration scores of every fold."""
        if not self._folds or not all(fold.conformal for fold in self._folds):
            return None
        scores = [fold.conformal for fold in self._folds]
        return prediction_set(scores, logits_FK, classes=classes, coverage=coverage)

    def measure_volume(self, case: PreparedCase) -> Float[NDArray[np.float64], "S"] | None:
        """Statistics of the prepared CT; None if they are not needed."""
        return volume_statistics(case.ct_1DHW, case.geometry_G) if self._folds and self._image else None

    def assess(
        self, case: PreparedCase, folds: Sequence[FoldMeasurement], *, volume_S: Float[np.ndarray, " S"] | None
    ) -> Trust | None:
        """p-values of one case; None without statistics.

        Args:
            case: the prepared case.
            folds: its measurement by each fold, in the order of the statistics.
            volume_S: result of `measure_volume`.
        """
        if not self._folds:
            return None
        scores = []
        for statistics, fold in zip(self._folds, folds, strict=True):
            parts = case_parts(
                ct_features_NC=_row(fold.ct_C),
                volume_NS=_row(volume_S),
                text_features_NC=_row(fold.text_C),
                numbers_NV=_row(case.numbers_V),
                radiomics_NR=_row(fold.radiomics_R),
                clipped_NR=_row(fold.clipped_R),
            )
            scores.append({name: float(values[0]) for name, values in statistics.scores(parts).items()})
        return assess(self._folds, scores, level=self._level)


def _row(values: NDArray[Any] | None) -> NDArray[Any] | None:
    """Array [1, ...] of one case."""
    return None if values is None else values[None]


def trust_sentence(trust: Trust | None) -> str:
    """One sentence on the trust of a prediction."""
    if trust is None:
        return NOT_ASSESSED
    numbers = f"p-value {trust.p_value:.3f}, level {trust.level:g}, {trust.cases} held-out training cases"
    if trust.verdict == "too-few-cases":
        smallest = smallest_p_value(trust.cases)
        return f"too few held-out training cases: the smallest possible p-value is {smallest:.3f} ({numbers})"
    if trust.verdict == NOT_TRUSTED:
        strange = sorted(trust.p_values, key=lambda name: trust.p_values[name])
        by_modality = ", ".join(f"{name} {trust.p_values[name]:.3f}" for name in strange)
        return f"out of distribution, unlike the training cases ({numbers}; {by_modality})"
    return f"like the training cases ({numbers})"


def trust_lines(predicted: Sequence[tuple[str, Trust | None]]) -> list[str]:
    """One line on the trust of all cases, given by their ids: their p-values, or why there are none."""
    assessed = [(case_id, trust) for case_id, trust in predicted if trust is not None]
    if not assessed:
        return [NOT_ASSESSED] if predicted else []
    if len(assessed) == 1:
        return [f"trust: {trust_sentence(assessed[0][1])}"]
    trust = assessed[0][1]
    counts = f"{sum(t.verdict == NOT_TRUSTED for _, t in assessed)} of {len(assessed)} cases not trusted"
    if trust.verdict == "too-few-cases":
        return [f"trust: {trust_sentence(trust)}"]
    return [
        f"trust: {counts} at level {trust.level:g}, against {trust.cases} held-out training cases; p-values: "
        + ", ".join(f"{case_id} {t.p_value:.3f}" for case_id, t in assessed)
    ]


def set_lines(predicted: Sequence[tuple[str, PredictionSet | None]]) -> list[str]:
    """One line on the prediction sets of all cases, given by their ids; none if no case has one."""
    found = [(case_id, one) for case_id, one in predicted if one is not None]
    if len(found) < 2 or found[0][1].classes is None:
        return [set_sentence(one) for _, one in found[:1]]
    sets = ", ".join(f"{case_id} {set_text(one)}" for case_id, one in found)
    return [f"prediction sets at coverage {found[0][1].coverage:.3g}: {sets}"]


def trust_issue(trust: Trust | None, case_id: str) -> Issue | None:
    """Alert of a case that is out of distribution; None for any other."""
    if trust is None or trust.verdict != NOT_TRUSTED:
        return None
    message = f"{trust_sentence(trust)}: do not rely on the prediction"
    return Issue.of(NOT_TRUSTED, message, TRUST_FIX, case_id=case_id)
