"""Notices of one case: facts about its input and its model that are reported with the prediction."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

from tmi.runtime.bundle.manifest import Manifest
from tmi.runtime.serving.results import INCOMPLETE, UNLIKE_TRAINING, Notice
from tmi.toolkit.config.schema import MODALITIES
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
    manifest: Manifest,
    system: str,
) -> tuple[Notice, ...]:
    """Collect the notices of one case.

    Args:
        case: the prepared case; its own alerts come first, and its warnings before the other notices.
        imputed_R: features that were missing, in any fold.
        clipped_R: features outside the training range, in any fold.
        manifest: manifest of the bundle.
        system: name of the model in the bundle.
    """
    notices = [Notice(code="input", message=text) for text in case.warnings]
    for code, mask_R in (("radiomics-imputed", imputed_R), ("radiomics-clipped", clipped_R)):
        if mask_R.any():
            notices.append(_feature_notice(code, mask_R))
    if system != "tmi-clnet" or manifest.modalities != MODALITIES:
        message = f"the network is {system} and uses only {', '.join(manifest.modalities)}"
        notices.append(Notice(code=OTHER_NETWORK, message=message))
    if manifest.synthetic:
        notices.append(Notice(code=SYNTHETIC, message="the models were trained on synthetic cases, not on patients"))
    return (*case_alerts(case, imputed_R=imputed_R, clipped_R=clipped_R), *notices)


def case_alerts(
    case: PreparedCase, *, imputed_R: Bool[NDArray[np.bool_], "R"], clipped_R: Bool[NDArray[np.bool_], "R"]
) -> tuple[Notice, ...]:
    """Collect the alerts of one case: its own, and those about features that were imputed or clipped in any fold."""
    of_case = (Notice(code=a.code, message=f"{a.message}; {DO_NOT_RELY}", count=a.count) for a in case.alerts)
    return (*of_case, *_alerts({"radiomics-clipped": clipped_R, "radiomics-imputed": imputed_R}))


def _alerts(masks: Mapping[str, Bool[NDArray[np.bool_], "R"]]) -> tuple[Notice, ...]:
    """Alerts for the masks [R] that hold more than `MAX_SHARE` of the features, by the code of their notice."""
    counts = {code: int(mask_R.sum()) for code, mask_R in masks.items() if mask_R.sum() > MAX_SHARE * mask_R.size}
    return tuple(
        Notice(code=alert, message=f"{count} of {masks[code].size} {message}", count=count)
        for code, count in counts.items()
        for alert, message in [FEATURE_ALERTS[code]]
    )


def _feature_notice(code: str, mask_R: NDArray[np.bool_]) -> Notice:
    indices = np.flatnonzero(mask_R)
    names = tuple(FEATURE_NAMES[i] for i in indices[:MAX_NAMES])
    more = f" and {indices.size - len(names)} more" if indices.size > len(names) else ""
    return Notice(
        code=code,
        message=f"{indices.size} of {mask_R.size} radiomic features {FEATURE_WARNINGS[code]}: {', '.join(names)}{more}",
        count=int(indices.size),
        names=names,
    )
