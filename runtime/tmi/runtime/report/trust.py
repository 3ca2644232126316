"""Statements beside a prediction on how far it can be trusted, and its numbers at the digits that they need."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tmi.runtime.serving.input_warnings import SYNTHETIC
from tmi.runtime.serving.results import ALERTS, Prediction
from tmi.runtime.serving.trust import NOT_TRUSTED, trust_sentence
from tmi.toolkit.issues.issue import Issue
from tmi.toolkit.trust.conformal import PredictionSet, set_sentence
from tmi.toolkit.trust.p_values import Trust

NBSP, MINUS = "\u00a0", "\u2212"
DIGITS, MAX_DIGITS = 3, 15
"""Usual and largest number of digits of a probability."""
WIDE_RANGE = 0.2
"""Range of the folds' probabilities from which folds with the same decision are said to differ."""
UNITS = r"(?:%|\u00b1|mm|cm|m|HU|ml|mL|s|kg|years?|g/L|mg/dL|MB|GB|GiB)"
UNIT = re.compile(rf"(?<=\d) (?={UNITS}(?:\W|$))|(?<=\u00b1) (?=\d)")


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One statement on a prediction."""

    level: Literal["bad", "warn", "ok"]
    """`bad`: do not rely on the prediction; `warn`: a reason for doubt; `ok`: none."""
    about: str
    """Subject, one word."""
    text: str
    """One or two sentences."""


def unbroken(text: str) -> str:
    """Return the text with spaces between a number and its unit or sign that no line break replaces."""
    return UNIT.sub(NBSP, text)


def digits_needed(threshold: float, probabilities: Sequence[float]) -> int:
    """Number of digits at which every rounded probability is on the same side of the rounded threshold."""
    for digits in range(DIGITS, MAX_DIGITS):
        limit = round(threshold, digits)
        if all((round(p, digits) >= limit) == (p >= threshold) for p in probabilities):
            return digits
    return MAX_DIGITS


def format_threshold(threshold: float, digits: int) -> str:
    """Format the threshold with at most so many digits."""
    whole, _, decimals = f"{threshold:.{digits}f}".partition(".")
    return f"{whole}.{decimals.rstrip('0') or '0'}"


def signed(value: float) -> str:
    """Format a contribution in log-odds with three digits and its sign; a value that rounds to zero has none."""
    text = f"{abs(value):.3f}"
    return text if float(text) == 0 else f"{'+' if value > 0 else MINUS}{text}"


def fold_agreement(prediction: Prediction, positive: str, threshold: float) -> Statement:
    """Statement on whether the folds decide alike."""
    values = sorted(fold.probability[positive] for fold in prediction.folds)
    digits = digits_needed(threshold, values)
    if len(values) == 1:
        return Statement(level="warn", about="Folds", text="The bundle has one fold: its uncertainty is unknown.")
    lowest, highest = (f"{value:.{digits}f}" for value in (values[0], values[-1]))
    interval = f"{lowest} to {highest}"
    above = sum(value >= threshold for value in values)
    (negative,) = (name for name in prediction.probability if name != positive)
    if 0 < above < len(values):
        text = (
            f"The folds disagree: {above} of {len(values)} decide {positive}, {len(values) - above} {negative} "
            f"({interval}). The decision is uncertain."
        )
        return Statement(level="warn", about="Folds", text=text)
    decision = positive if above else negative
    if values[-1] - values[0] >= WIDE_RANGE:
        text = f"All {len(values)} folds decide {decision}, but their probabilities differ ({interval})."
        return Statement(level="warn", about="Folds", text=text)
    text = f"The folds agree: all {len(values)} decide {decision} ({interval})."
    return Statement(level="ok", about="Folds", text=text)


def trust_statements(
    prediction: Prediction,
    findings: Sequence[Issue],
    *,
    positive: str,
    threshold: float,
    trained: Mapping[str, Any],
    parity: Mapping[str, Any] | None,
) -> list[Statement]:
    """Statements on one prediction, the gravest first.

    Args:
        prediction: the prediction.
        findings: findings of `tmi check`.
        positive: name of the positive class.
        threshold: the bundle's threshold.
        trained: training data of the models, as `pages.trained_on` returns it.
        parity: row of `pages.evidence` of the engine that was used.
    """
    notices = [
        Statement(level=_level(issue), about="Input", text=f"{_without_names(issue)} ({issue.code}).")
        for issue in issues_of_page(prediction, findings)
        if issue.code not in (SYNTHETIC, NOT_TRUSTED)  # which have statements of their own
    ]
    if not notices:
        text = "All checks of the case passed; nothing was imputed, clipped or truncated."
        notices = [Statement(level="ok", about="Input", text=text)]
    statements = [
        fold_agreement(prediction, positive, threshold),
        *notices,
        _distribution(prediction.trust),
        *_prediction_set(prediction.prediction_set),
        _training(trained),
        _calibration(trained, positive),
    ]
    if parity is not None:
        passed = parity["passed"] == parity["checks"]
        text = f"{parity['engine']} passed {parity['passed']} of {parity['checks']} parity checks at the export."
        statements.append(Statement(level="ok" if passed else "bad", about="Engine", text=text))
    return sorted(statements, key=lambda s: ("bad", "warn", "ok").index(s.level))


def issues_of_page(prediction: Prediction, findings: Sequence[Issue]) -> list[Issue]:
    """Return the warnings of the prediction, then those findings of `tmi check` that are not among them."""
    known = {(issue.code, issue.message) for issue in prediction.warnings}
    alerts = {issue.code for issue in prediction.warnings if issue.code in ALERTS}  # their messages say more
    new = [issue for issue in findings if (issue.code, issue.message) not in known and issue.code not in alerts]
    return [*prediction.warnings, *new]


def _distribution(trust: Trust | None) -> Statement:
    """Statement on whether the case is like the training cases; one that is not has an alert too."""
    levels: Mapping[str, Literal["bad", "warn", "ok"]] = {NOT_TRUSTED: "bad", "trusted": "ok"}
    level = "warn" if trust is None else levels.get(trust.verdict, "warn")
    text = trust_sentence(trust).removeprefix("trust: ")
    return Statement(level=level, about="Trust", text=f"{text[0].upper()}{text[1:]}.")


def _prediction_set(found: PredictionSet | None) -> list[Statement]:
    """Statement on the classes that the case may belong to; none for a bundle without calibration scores."""
    if found is None:
        return []
    text = set_sentence(found)
    told_apart = found.classes is not None and len(found.classes) == 1
    return [Statement(level="ok" if told_apart else "warn", about="Set", text=f"{text[0].upper()}{text[1:]}.")]


def _level(issue: Issue) -> Literal["bad", "warn", "ok"]:
    return "bad" if issue.code in ALERTS else "ok" if issue.severity == "note" else "warn"


def _without_names(issue: Issue) -> str:
    """Message without the list of features, which the table of warnings holds."""
    return issue.message.partition(": ")[0] if issue.names else issue.message


def _training(trained: Mapping[str, Any]) -> Statement:
    cases = "" if not trained["cases"] else f"{trained['cases']} "
    text = f"The models were trained on {cases}cases"
    if trained["synthetic"]:
        text = f"The models were trained on {cases}synthetic cases, not on patients"
    if trained["auc"] is None:
        text += "; their accuracy on held-out cases is not recorded."
    else:
        deviation = "" if trained["auc_sd"] is None else f" \u00b1 {trained['auc_sd']:.2f}"
        text += f"; ROC AUC on held-out cases {trained['auc']:.2f}{deviation}."
    doubtful = trained["synthetic"] or trained["auc"] is None
    return Statement(level="warn" if doubtful else "ok", about="Training", text=text)


def _calibration(trained: Mapping[str, Any], positive: str) -> Statement:
    if trained["temperatures"]:
        text = (
            f"The logits were divided by temperatures ({', '.join(trained['temperatures'])}) fitted on each fold's "
            "inner validation cases; the calibration may not hold at another hospital."
        )
        return Statement(level="ok", about="Calibration", text=text)
    text = (
        "The bundle has no calibration against outcomes: among cases with probability 0.8, the fraction with a "
        f"{positive} prognosis may differ from 80 %."
    )
    return Statement(level="warn", about="Calibration", text=text)
