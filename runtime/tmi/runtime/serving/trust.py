"""Trust of a prediction: p-values of its case against the bundle's training cases, with a statement in words.

The statistics of each fold are compared with the features of the same fold's encoders, so nothing runs twice. A bundle
without statistics gives the same predictions, and states that trust was not assessed.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Float32
from numpy.typing import NDArray

from tmi.runtime.bundle.contents import bundled_trust
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.inference.ensemble import Features
from tmi.toolkit.errors import UsageError
from tmi.toolkit.issues.issue import Issue
from tmi.toolkit.preprocessing.pipeline import PreparedCase
from tmi.toolkit.trust.measurements import case_parts, volume_statistics
from tmi.toolkit.trust.p_values import Trust, assess, require_level, smallest_p_value

NOT_TRUSTED = "not-trusted"
"""Code of the alert, and the decision, of a case that is out of distribution."""
NOT_ASSESSED = "trust: not assessed, the bundle has no statistics of its training cases"
TRUST_FIX = "compare scanner, contrast phase, mask and units of the record with those of the training cases"


class TrustAssessor:
    """Statistics of the folds of a bundle.

    Args:
        bundle: the opened bundle.
        level: largest joint p-value at which a case is not trusted; None: the manifest's.

    Raises:
        UsageError: a level for a bundle without statistics, or one that is no probability.
        DamagedError: a file of the statistics is malformed.
    """

    def __init__(self, bundle: Bundle, *, level: float | None = None) -> None:
        self._manifest = bundle.manifest
        record = bundle.manifest.trust
        if record is None and level is not None:
            raise UsageError(
                "the bundle has no statistics of its training cases, so it cannot assess trust at a level",
                fix="omit --trust-level, or train with this version and export again",
            )
        self._folds = bundled_trust(bundle)
        self._level = require_level(level if level is not None else 0.5 if record is None else record.level)

    @property
    def assesses(self) -> bool:
        """Whether the bundle has statistics."""
        return bool(self._folds)

    def measure_volume(self, case: PreparedCase) -> Float[NDArray[np.float64], "S"] | None:
        """Statistics of the prepared CT; None if they are not needed."""
        if not self._folds or not self._manifest.uses("image"):
            return None
        return volume_statistics(case.ct_1DHW, case.geometry_G)

    def assess(
        self,
        case: PreparedCase,
        *,
        row: int,
        volume_S: Float[np.ndarray, " S"] | None,
        ct: Features,
        text: Features,
        radiomics_FR: Float32[NDArray[np.float32], "F R"],
        clipped_FR: Bool[NDArray[np.bool_], "F R"],
    ) -> Trust | None:
        """p-values of one case; None for a bundle without statistics.

        Args:
            case: the prepared case.
            row: its row in the features.
            volume_S: result of `measure_volume`.
            ct: CT features [B, C] by graph.
            text: text features [B, C] by graph.
            radiomics_FR: radiomics scaled by each fold's scaler.
            clipped_FR: features outside each fold's training range.
        """
        if not self._folds:
            return None
        scores = []
        for index, (fold, statistics) in enumerate(zip(self._manifest.folds, self._folds, strict=True)):
            parts = case_parts(
                ct_features_NC=None if fold.ct is None else ct[fold.ct][row : row + 1],
                volume_NS=None if volume_S is None else volume_S[None],
                text_features_NC=None if fold.text is None else text[fold.text][row : row + 1],
                numbers_NV=None if case.numbers_V is None else case.numbers_V[None],
                radiomics_NR=None if fold.scaler is None else radiomics_FR[index][None],
                clipped_NR=None if fold.scaler is None else clipped_FR[index][None],
            )
            scores.append({name: float(values[0]) for name, values in statistics.scores(parts).items()})
        return assess(self._folds, scores, level=self._level)


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


def trust_issue(trust: Trust | None, case_id: str) -> Issue | None:
    """Alert of a case that is out of distribution; None for any other."""
    if trust is None or trust.verdict != NOT_TRUSTED:
        return None
    message = f"{trust_sentence(trust)}: do not rely on the prediction"
    return Issue.of(NOT_TRUSTED, message, TRUST_FIX, case_id=case_id)
