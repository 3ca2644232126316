"""Results of a prediction: frozen records and their JSON form `tmi-prediction/1` (described in `docs/predict.md`).

They hold no patient data except the case id.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.selection import EngineRecord
from tmi.toolkit.qc.check_registry import ALERTS as CHECK_ALERTS
from tmi.toolkit.storage.serialization import from_json, to_json

SCHEMA = "tmi-prediction/1"
STAGES = ("radiomics", "tokenise", "text", "ct", "fusion", "other")
"""Stages of every prediction in pipeline order; those of the preparation (`tmi.toolkit.preprocessing.pipeline`) come
first."""
COPIES = "copies"
"""Additional stage of engines on a device with its own memory: copies to and from it that did not overlap."""
UNLIKE_TRAINING, INCOMPLETE = "unlike-training", "radiomics-incomplete"
ALERTS: tuple[str, ...] = (*sorted(CHECK_ALERTS, reverse=True), UNLIKE_TRAINING, INCOMPLETE)
"""Codes of the notices that stand first: in `Prediction.warnings`, in the document, above the table, in a report."""
RESEARCH_USE = "For research use only: not a medical device, not for diagnosis or treatment."


@dataclass(frozen=True, kw_only=True)
class Notice:
    """A fact about the input or the model that is reported with a prediction.

    Attributes:
        code: short name of the kind of notice; `tmi.runtime.serving.ALERTS` lists those of alerts.
        message: one sentence.
        count: number of features or clinical fields it concerns, if it concerns such.
        names: names of the first of those features.
    """

    code: str
    """Short name of the kind of notice."""
    message: str
    """One sentence."""
    count: int | None = None
    """Number of features or clinical fields it concerns, if it concerns such."""
    names: tuple[str, ...] = ()
    """Names of the first of those features, in the order of the feature table."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as in the document of `tmi predict --json`."""
        return to_json(self)


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
        decision: class name: `bad` if its probability is at least the bundle's threshold.
        warnings: notices about the input and the model; alerts come first.
        engine: name of the engine that computed the prediction.
        bundle: SHA-256 of the bundle's manifest.
        seconds: seconds by stage, and the `total`.
        overlapped: seconds of the same stages that overlapped other work.
        reused: branches whose features came from the embedding cache.
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
    """Class name: the positive class if its probability is at least the bundle's threshold."""
    warnings: tuple[Notice, ...]
    """Notices about the input and the model."""
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
    """

    case_id: str
    """Id of the case."""
    code: str
    """Code of the check that rejected it."""
    what: str
    """Description of the error."""
    fix: str
    """How to fix it."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as in the document of `tmi predict --json`, with a `status` of `refused`."""
        return {"status": "refused", **to_json(self)}


CaseResult = Prediction | RejectedCase


def alerts(results: Sequence[CaseResult]) -> list[tuple[str, Notice]]:
    """Case id and notice of every alert, in the order of the cases."""
    predicted = [r for r in results if isinstance(r, Prediction)]
    return [(r.case_id, notice) for r in predicted for notice in r.warnings if notice.code in ALERTS]


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
        return from_json(Prediction, fields, where="result")
    return from_json(RejectedCase, fields, where="result")


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
        "alerts": [{"case_id": case_id, **to_json(notice)} for case_id, notice in alerts(results)],
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
        },
        "engine": to_json(engine),
        "batch": batch,
        "counts": {"predicted": predicted, "refused": len(results) - predicted},
        "results": [result_to_json(r) for r in results],
    }


def document_schema() -> dict[str, Any]:
    """JSON Schema of the document."""
    file = resources.files("tmi.runtime.serving") / "data" / "tmi-prediction-1.schema.json"
    schema: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return schema
