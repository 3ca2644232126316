"""Warnings and notes of one case, about its input and its model, that are reported with the prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

from tmi.runtime.serving.results import ALERTS, INCOMPLETE, UNLIKE_TRAINING
from tmi.toolkit.config.schema import MODALITIES
from tmi.toolkit.issues.issue import Issue
from tmi.toolkit.model_registry import REFERENCE_MODEL
from tmi.toolkit.preprocessing.pipeline import PreparedCase
from tmi.toolkit.radiomics.feature_names import FEATURE_NAMES

MAX_NAMES = 5
"""Maximum number of features that a notice names."""
FEATURE_WARNINGS: Mapping[str, str] = MappingProxyType(
    {
        "radiomics-imputed": "are missing and were set to 0 after scaling",
        "radiomics-clipped": "lie outside the training range and were clipped to it",
    }
)
"""Notices that count features: code -> predicate of the message."""
FEATURE_FIXES: Mapping[str, str] = MappingProxyType(
    {
        "radiomics-imputed": "give a table with all features, or remove it so that they are extracted from the mask",
        "radiomics-clipped": "compare CT, mask and the program of the table with those of the training cases",
    }
)
"""Notices that count features -> how to fix them."""
DO_NOT_RELY = "do not rely on the prediction"
MAX_SHARE = 0.1
"""Share of the features above which a count becomes an alert."""
FEATURE_ALERTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "radiomics-clipped": (
            UNLIKE_TRAINING,
            f"radiomic features lie outside the training range: unlike the training cases, {DO_NOT_RELY}",
        ),
        "radiomics-imputed": (
            INCOMPLETE,
            "radiomic features are missing: the prediction rests on the other inputs, do not rely on it",
        ),
    }
)
"""Notices that count features -> code and message of the alert if they count more than `MAX_SHARE` of them."""
SYNTHETIC, OTHER_NETWORK = "synthetic-model", "other-network"
BUNDLE_WARNINGS: tuple[str, ...] = (SYNTHETIC, OTHER_NETWORK)
"""Notices that depend on the bundle and not on the case."""


def case_notices(
    case: PreparedCase,
    *,
    imputed_R: Bool[NDArray[np.bool_], "R"],
    clipped_R: Bool[NDArray[np.bool_], "R"],
    modalities: Sequence[str],
    synthetic: bool,
    system: str,
) -> tuple[Issue, ...]:
    """Collect the notices of one case.

    Args:
        case: the prepared case; its own alerts come first, and its warnings before the other notices.
        imputed_R: features that were missing, in any fold.
        clipped_R: features outside the training range, in any fold.
        modalities: modalities that the models use.
        synthetic: whether they were trained on synthetic cases.
        system: name of the model.
    """
    notices = [issue for issue in case.warnings if issue.code not in ALERTS]
    for code, mask_R in (("radiomics-imputed", imputed_R), ("radiomics-clipped", clipped_R)):
        if mask_R.any():
            notices.append(_feature_notice(code, mask_R))
    if system != REFERENCE_MODEL or tuple(modalities) != MODALITIES:
        message = f"the network is {system} and uses only {', '.join(modalities)}"
        notices.append(Issue.of(OTHER_NETWORK, message, "none needed: the other inputs are not used"))
    if synthetic:
        message = "the models were trained on synthetic cases, not on patients"
        notices.append(Issue.of(SYNTHETIC, message, "use a bundle whose models were trained on patients"))
    own = [replace(issue, message=f"{issue.message}; {DO_NOT_RELY}") for issue in case.alerts]
    found = (*own, *_alerts({"radiomics-clipped": clipped_R, "radiomics-imputed": imputed_R}), *notices)
    return tuple(issue.of_case(case.case_id) for issue in found)


def _alerts(masks: Mapping[str, Bool[NDArray[np.bool_], "R"]]) -> tuple[Issue, ...]:
    """Alerts for the masks [R] that hold more than `MAX_SHARE` of the features, by the code of their notice."""
    counts = {code: int(mask_R.sum()) for code, mask_R in masks.items() if mask_R.sum() > MAX_SHARE * mask_R.size}
    return tuple(
        Issue.of(alert, f"{count} of {masks[code].size} {message}", FEATURE_FIXES[code], count=count)
        for code, count in counts.items()
        for alert, message in [FEATURE_ALERTS[code]]
    )


def _feature_notice(code: str, mask_R: NDArray[np.bool_]) -> Issue:
    indices = np.flatnonzero(mask_R)
    names = tuple(FEATURE_NAMES[i] for i in indices[:MAX_NAMES])
    more = f" and {indices.size - len(names)} more" if indices.size > len(names) else ""
    message = f"{indices.size} of {mask_R.size} radiomic features {FEATURE_WARNINGS[code]}: {', '.join(names)}{more}"
    return Issue.of(code, message, FEATURE_FIXES[code], count=int(indices.size), names=names)
