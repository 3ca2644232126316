"""Postprocessing: fold logits of one case to a prediction (ensemble mean, fold standard deviation, decision)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from tmi.runtime.bundle.manifest import Manifest
from tmi.runtime.inference.ensemble import fold_std, probabilities, softmax
from tmi.runtime.serving.results import (
    ALERTS,
    UNLIKE_TRAINING,
    CaseResult,
    FoldPrediction,
    Prediction,
    RejectedCase,
    withheld_decision,
)
from tmi.runtime.serving.trust import trust_issue
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.issues.issue import Issue
from tmi.toolkit.trust.conformal import PredictionSet
from tmi.toolkit.trust.p_values import Trust


def truncated_notice(longest: int, case_id: str) -> Issue:
    """Warning of a text that was longer than `longest` tokens."""
    message = f"the clinical text was cut to its first {longest} tokens"
    return Issue.of(
        "clinical-truncated", message, "shorten the report; tmi check names what is cut off", case_id=case_id
    )


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The decision of a prediction, and what withheld it."""

    decision: str
    """Class name, `not-trusted` or `not-decided`."""
    predicted: str
    """Class name on which the threshold decides, whatever the alerts."""
    reasons: tuple[str, ...]
    """Codes of the alerts."""
    notices: tuple[Issue, ...]
    """Warnings and notes of the prediction, alerts first."""


def decide(
    probability: float,
    notices: tuple[Issue, ...],
    trust: Trust | None,
    *,
    case_id: str,
    threshold: float,
    classes: Sequence[str],
    positive: int,
    withholds: bool,
) -> Decision:
    """Decide on one case; `tmi predict` and `tmi explain` both do so here.

    Args:
        probability: probability of the positive class, mean over the folds.
        notices: notices of the case; `unlike-training` is left out where `trust` could be assessed.
        trust: p-values of the case.
        case_id: id of the case.
        threshold: smallest probability at which the positive class is decided.
        classes: names of the classes.
        positive: index of the positive class.
        withholds: whether an alert withholds the decision: where there are trust statistics. Models of earlier versions
            keep the decisions that they have always given.
    """
    if trust is not None and trust.verdict != "too-few-cases":
        # a tenth of the features is a rule of thumb, and the p-value of the same share is calibrated
        notices = tuple(notice for notice in notices if notice.code != UNLIKE_TRAINING)
    alert = trust_issue(trust, case_id)
    notices = notices if alert is None else (alert, *notices)
    reasons = tuple(dict.fromkeys(notice.code for notice in notices if notice.code in ALERTS))
    predicted = classes[positive if probability >= threshold else 1 - positive]
    decision = (withheld_decision(reasons) if withholds else None) or predicted
    return Decision(decision=decision, predicted=predicted, reasons=reasons, notices=notices)


def to_prediction(
    case_id: str,
    logits_1FK: Float32[NDArray[np.float32], "1 F K"],
    *,
    manifest: Manifest,
    digest: str,
    engine: str,
    notices: tuple[Issue, ...],
    reused: tuple[str, ...] = (),
    trust: Trust | None = None,
    prediction_set: PredictionSet | None = None,
) -> CaseResult:
    """Convert the logits of one case to a prediction without timing.

    Args:
        case_id: id of the case.
        logits_1FK: logits of every fold, in the order of the manifest.
        manifest: manifest of the bundle; its threshold decides between the classes.
        digest: digest of the bundle.
        engine: name of the engine that computed the logits.
        notices: notices of the case.
        reused: branches whose features came from the embedding cache.
        trust: p-values of the case.
        prediction_set: classes that the case may belong to at a coverage.

    Returns:
        The prediction, whose decision is withheld if a notice is an alert and the bundle has trust statistics; a
        rejected case if a logit is not finite.
    """
    if not np.isfinite(logits_1FK).all():
        message = f"the network's output on engine {engine} is not finite"
        fix = "check the case with `tmi check`, and predict it with another --engine"
        return RejectedCase.of(InputRejectedError(message, fix=fix, code="answer-not-finite"), case_id)
    mean_K = probabilities(logits_1FK)[0]  # mean over folds of each fold's softmax, not softmax of the mean logits
    decided = decide(
        float(mean_K[manifest.positive]),
        notices,
        trust,
        case_id=case_id,
        threshold=manifest.threshold,
        classes=manifest.classes,
        positive=manifest.positive,
        withholds=manifest.trust is not None,
    )

    def by_class(p_K: NDArray[np.float64]) -> dict[str, float]:
        return {name: float(p) for name, p in zip(manifest.classes, p_K, strict=True)}

    return Prediction(
        case_id=case_id,
        probability=by_class(mean_K),
        folds=tuple(
            FoldPrediction(fold=fold.fold, probability=by_class(p_K))
            for fold, p_K in zip(manifest.folds, softmax(logits_1FK)[0], strict=True)
        ),
        spread=float(fold_std(logits_1FK, manifest.positive)[0]),
        decision=decided.decision,
        reasons=decided.reasons,
        warnings=decided.notices,
        engine=engine,
        bundle=digest,
        seconds={},
        overlapped={},
        reused=reused,
        trust=trust,
        prediction_set=prediction_set,
    )
