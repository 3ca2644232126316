"""What a prediction is: frozen records, and their JSON form `tmi-prediction/1` (`docs/predict.md` describes it).

No patient data beyond the case id is in any of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.selection import EngineRecord
from tmi.toolkit.storage.serialization import from_json, to_json

SCHEMA = "tmi-prediction/1"
STAGES = ("radiomics", "tokenise", "text", "ct", "fusion", "other")
"""Stages of every prediction, after those of the preparation (`tmi.toolkit.preprocessing.pipeline`), in the order of
the road."""
COPIES = "copies"
"""One more, on engines of a device with its own memory: the copies there and back that nothing hid."""
RESEARCH_USE = "For research use only: not a medical device, not for diagnosis or treatment."


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something about the input that the reader of an answer must know."""

    code: str
    """Short name of the kind of notice."""
    message: str
    """One sentence."""
    count: int | None = None
    """How many features it concerns, where it concerns features."""
    names: tuple[str, ...] = ()
    """The first of those features, in their fixed order."""


@dataclass(frozen=True, kw_only=True)
class FoldPrediction:
    """What one fold's model says."""

    fold: int
    """Fold number in the run."""
    probability: Mapping[str, float]
    """Class name -> probability."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer for one case."""

    case_id: str
    """Which case."""
    probability: Mapping[str, float]
    """Class name -> probability, the mean over the folds."""
    folds: tuple[FoldPrediction, ...]
    """Each fold by itself."""
    spread: float
    """Standard deviation over the folds (population) of the positive class's probability."""
    decision: str
    """Class name: the positive class from the bundle's threshold on."""
    warnings: tuple[Notice, ...]
    """What to know about the input and the model."""
    engine: str
    """Name of the engine that computed it."""
    bundle: str
    """SHA-256 of the bundle's manifest."""
    seconds: Mapping[str, float]
    """Seconds that the answer waited for, by stage of the preparation and of `STAGES`, and the `total`, which is
    measured by itself (`tmi.runtime.serving.timing`). What a batch shares is divided evenly."""
    overlapped: Mapping[str, float]
    """Seconds of the same stages that passed while something else was waited for; not in `seconds`."""
    reused: tuple[str, ...] = ()
    """Branches, `ct` or `text`, whose features were kept from before and not computed."""


@dataclass(frozen=True, kw_only=True)
class RejectedCase:
    """Why a case was not predicted."""

    case_id: str
    """Which case."""
    code: str
    """Short name of the check that refused it."""
    what: str
    """What is wrong."""
    fix: str
    """How to mend it."""


CaseResult = Prediction | RejectedCase


def result_to_json(answer: CaseResult) -> dict[str, Any]:
    """Plain JSON values with a `status` of `predicted` or `refused`."""
    status = "predicted" if isinstance(answer, Prediction) else "refused"
    return {"status": status, **to_json(answer)}


def result_from_json(data: Mapping[str, Any]) -> CaseResult:
    """What `result_to_json` wrote.

    Raises:
        UsageError: a field is unknown, missing or of the wrong type.
    """
    fields = dict(data)
    if fields.pop("status", None) == "predicted":
        return from_json(Prediction, fields, where="answer")
    return from_json(RejectedCase, fields, where="answer")


def document(
    answers: Sequence[CaseResult], *, bundle: Bundle, engine: EngineRecord, batch: int, created: str, version: str
) -> dict[str, Any]:
    """The whole JSON document of one command.

    Args:
        answers: in the order of the input.
        bundle: that answered.
        engine: that computed.
        batch: cases computed together.
        created: UTC time, ISO 8601.
        version: of this package.
    """
    manifest = bundle.manifest
    predicted = sum(isinstance(a, Prediction) for a in answers)
    return {
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
        "counts": {"predicted": predicted, "refused": len(answers) - predicted},
        "results": [result_to_json(a) for a in answers],
    }


def document_schema() -> dict[str, Any]:
    """The JSON Schema that every document satisfies."""
    file = resources.files("tmi.runtime.serving") / "data" / "tmi-prediction-1.schema.json"
    schema: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return schema
