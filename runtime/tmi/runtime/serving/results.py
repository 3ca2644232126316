"""Results of a prediction: frozen records and their JSON form `tmi-prediction/3` (described in `docs/predict.md`).

They hold no patient data except the case id. Warnings and reasons of a rejection are `Issue`s. Results of
`tmi-prediction/1` and `/2`, which older journals and pages hold, are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Self

from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.selection import EngineRecord
from tmi.runtime.serving.trust import NOT_TRUSTED
from tmi.toolkit.errors import InputRejectedError, TmiError
from tmi.toolkit.issues.issue import Issue as Issue
from tmi.toolkit.qc.check_registry import ALERTS as CHECK_ALERTS
from tmi.toolkit.storage.serialization import from_json, to_json
from tmi.toolkit.trust.conformal import PredictionSet
from tmi.toolkit.trust.p_values import Trust

SCHEMA = "tmi-prediction/3"
STAGES = ("radiomics", "tokenise", "text", "ct", "fusion", "other")
"""Stages of every prediction in pipeline order; those of the preparation (`tmi.toolkit.preprocessing.pipeline`) come
first."""
COPIES = "copies"
"""Additional stage of engines on a device with its own memory: copies to and from it that did not overlap."""
UNLIKE_TRAINING, INCOMPLETE = "unlike-training", "radiomics-incomplete"
ALERTS: tuple[str, ...] = (NOT_TRUSTED, *sorted(CHECK_ALERTS, reverse=True), UNLIKE_TRAINING, INCOMPLETE)
"""Codes of the warnings that stand first: in `Prediction.warnings`, in the document, above the table, in a report."""
NOT_DECIDED = "not-decided"
"""Decision of a prediction with an alert, unless `not-trusted` is its only one."""
OLD_FIX = "see the table of codes (docs/checks.md)"
"""Fix of a warning of `tmi-prediction/1`, which had none."""
RESEARCH_USE = "For research use only: not a medical device, not for diagnosis or treatment."


@dataclass(frozen=True, kw_only=True)
class FoldPrediction:
    """Prediction of one fold's model.

    Attributes:
        fold: number of the fold in the run.
        probability: class name -> probability.
    """

    fold: int
    """Number of the fold in the run."""
    probability: Mapping[str, float]
    """Class name -> probability."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as in the document of `tmi predict --json`."""
        return to_json(self)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Prediction for one case.

    Attributes:
        case_id: id of the case.
        probability: class name (`good`, `bad`) -> probability, mean over the folds.
        folds: prediction of each fold's model.
        spread: standard deviation over the folds of the positive class's probability.
        decision: class name: `bad` if its probability is at least the bundle's threshold; `not-trusted` or
            `not-decided` if the decision is withheld.
        warnings: warnings and notes about the input and the model; alerts come first.
        engine: name of the engine that computed the prediction.
        bundle: SHA-256 of the bundle's manifest.
        seconds: seconds by stage, and the `total`.
        overlapped: seconds of the same stages that overlapped other work.
        reused: branches whose features came from the embedding cache.
        trust: p-values of the case against the training cases; None: not assessed.
        reasons: codes of the alerts; the decision is withheld for them, except with a bundle without trust statistics.
        prediction_set: classes that the case may belong to at a coverage; None: not assessed.
    """

    case_id: str
    """Id of the case."""
    probability: Mapping[str, float]
    """Class name -> probability, mean over the folds."""
    folds: tuple[FoldPrediction, ...]
    """Prediction of each fold."""
    spread: float
    """Population standard deviation over the folds of the positive class's probability."""
    decision: str
    """Class name: the positive class if its probability is at least the bundle's threshold; or `not-trusted`,
    or `not-decided`."""
    warnings: tuple[Issue, ...]
    """Warnings and notes about the input and the model."""
    engine: str
    """Name of the engine that computed the prediction."""
    bundle: str
    """SHA-256 of the bundle's manifest."""
    seconds: Mapping[str, float]
    """Seconds that the prediction waited for, by stage of the preparation and of `STAGES`, and the `total`, which is
    measured separately (`tmi.runtime.serving.trace`). Seconds that a batch shares are divided evenly."""
    overlapped: Mapping[str, float]
    """Seconds of the same stages that overlapped other work; not part of `seconds`."""
    reused: tuple[str, ...] = ()
    """Branches, `ct` or `text`, whose features came from the embedding cache."""
    trust: Trust | None = None
    """p-values of the case against the training cases; None: the bundle has no statistics, and trust was not
    assessed."""
    reasons: tuple[str, ...] = ()
    """Codes of the alerts. The decision is withheld for them, except with a bundle without trust statistics."""
    prediction_set: PredictionSet | None = None
    """Classes that the case may belong to at a coverage; None: the bundle has no calibration scores."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as in the document of `tmi predict --json`, with a `status` of `predicted`."""
        return {"status": "predicted", **to_json(self)}


@dataclass(frozen=True, kw_only=True)
class RejectedCase:
    """A case that was not predicted, and the reason.

    Attributes:
        case_id: id of the case.
        code: code of the check that rejected it (docs/checks.md).
        what: description of the error, without patient data.
        fix: how to fix it.
        issues: every problem of the case; the first has the code and the fix.
    """

    case_id: str
    """Id of the case."""
    code: str
    """Code of the check that rejected it."""
    what: str
    """Description of the error."""
    fix: str
    """How to fix it."""
    issues: tuple[Issue, ...] = ()
    """Every problem of the case; not given: the one of `code`, `what` and `fix`."""

    def __post_init__(self) -> None:
        """Fill `issues`, which results of earlier versions lack."""
        if not self.issues:
            object.__setattr__(self, "issues", self.to_error().issues)

    @classmethod
    def of(cls, error: TmiError, case_id: str) -> Self:
        """Return the result of a case for which an error was raised."""
        issues = tuple(issue.of_case(case_id) for issue in error.issues)
        return cls(case_id=case_id, code=error.code, what=error.what, fix=error.fix, issues=issues)

    def to_error(self) -> InputRejectedError:
        """Return the error that the result stands for."""
        return InputRejectedError(self.what, fix=self.fix, code=self.code, case_id=self.case_id, issues=self.issues)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as in the document of `tmi predict --json`, with a `status` of `refused`."""
        return {"status": "refused", **to_json(self)}


CaseResult = Prediction | RejectedCase


def withheld_decision(reasons: Sequence[str]) -> str | None:
    """Decision of a prediction with alerts of these codes: `not-trusted`, `not-decided`, or None without an alert."""
    return None if not reasons else NOT_TRUSTED if set(reasons) == {NOT_TRUSTED} else NOT_DECIDED


def alerts(results: Sequence[CaseResult]) -> list[tuple[str, Issue]]:
    """Case id and issue of every alert: cases that are out of distribution first, then in the order of the cases."""
    predicted = [r for r in results if isinstance(r, Prediction)]
    found = [(r.case_id, issue) for r in predicted for issue in r.warnings if issue.code in ALERTS]
    return sorted(found, key=lambda alert: alert[1].code != NOT_TRUSTED)


def result_to_json(result: CaseResult) -> dict[str, Any]:
    """Convert to plain JSON values, with a `status` of `predicted` or `refused`."""
    return result.to_dict()


def result_from_json(data: Mapping[str, Any]) -> CaseResult:
    """Inverse of `result_to_json`.

    Raises:
        UsageError: a field is unknown, missing or of the wrong type.
    """
    fields = dict(data)
    if fields.pop("status", None) == "predicted":
        warnings = fields.get("warnings")
        if isinstance(warnings, list):
            fields["warnings"] = [_current(warning, fields.get("case_id")) for warning in warnings]
        return from_json(Prediction, fields, where="result")
    return from_json(RejectedCase, fields, where="result")


def _current(warning: Any, case_id: Any) -> Any:
    """Return a warning with the keys of `tmi-prediction/2`; those of the first version had no severity and no fix."""
    if not isinstance(warning, dict) or "severity" in warning:
        return warning
    return {"severity": "warning", "fix": OLD_FIX, "case_id": case_id, **warning}


def document(
    results: Sequence[CaseResult], *, bundle: Bundle, engine: EngineRecord, batch: int, created: str, version: str
) -> dict[str, Any]:
    """JSON document of one `tmi predict` command.

    Args:
        results: results of all cases, in the order of the input.
        bundle: the bundle.
        engine: record of the engine.
        batch: number of cases computed together.
        created: UTC time, ISO 8601.
        version: version of this package.
    """
    manifest = bundle.manifest
    predicted = sum(isinstance(r, Prediction) for r in results)
    return {
        # `canonical_json` sorts the keys: the alerts are at the top.
        "alerts": [issue.to_dict() for _, issue in alerts(results)],
        "schema": SCHEMA,
        "notice": RESEARCH_USE,
        "created": created,
        "version": version,
        "bundle": {
            "folder": str(bundle.folder),
            "digest": bundle.digest,
            "preset": manifest.preset,
            "folds": [fold.fold for fold in manifest.folds],
            "classes": list(manifest.classes),
            "positive": manifest.classes[manifest.positive],
            "threshold": manifest.threshold,
            "synthetic": manifest.synthetic,
            "trust": None if manifest.trust is None else {"level": manifest.trust.level, "cases": manifest.trust.cases},
        },
        "engine": to_json(engine),
        "batch": batch,
        "counts": {"predicted": predicted, "refused": len(results) - predicted},
        "results": [result_to_json(r) for r in results],
    }


def document_schema() -> dict[str, Any]:
    """JSON Schema of the document."""
    file = resources.files("tmi.runtime.serving") / "data" / "tmi-prediction-3.schema.json"
    schema: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return schema
