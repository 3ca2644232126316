"""Inputs and outputs of the model in the Open Inference Protocol: metadata, and the tensors of a prediction."""

from __future__ import annotations

import datetime
import json
from typing import Any

import numpy as np

from tmi.runtime.bundle.manifest import Manifest
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.selection import EngineRecord
from tmi.runtime.service.protocol import BYTES, FP64, Tensor
from tmi.runtime.service.uploads import CASE_ID, FILE_OF
from tmi.runtime.serving.results import CaseResult, Prediction, document
from tmi.toolkit.config.schema import N_RADIOMICS
from tmi.toolkit.storage.hashing import canonical_json

MODEL, MODEL_VERSION = "tmi", "1"
"""Name and version of the model in the protocol."""


def input_metadata() -> list[dict[str, Any]]:
    """Names, datatypes and shapes of the inputs."""
    texts = [{"name": name, "datatype": BYTES, "shape": [1, 1]} for name in (*FILE_OF, CASE_ID)]
    return [
        entry | {"datatype": FP64, "shape": [1, N_RADIOMICS]} if entry["name"] == "radiomics" else entry
        for entry in texts
    ]


def output_metadata(manifest: Manifest) -> list[dict[str, Any]]:
    """Names, datatypes and shapes of the outputs."""
    classes, folds = len(manifest.classes), len(manifest.folds)
    numbers = {"probability": [1, classes], "fold_probability": [1, folds, classes], "spread": [1, 1]}
    texts = ("decision", "issues", "case_id", "document")
    return [
        *({"name": name, "datatype": FP64, "shape": shape} for name, shape in numbers.items()),
        *({"name": name, "datatype": BYTES, "shape": [1, 1]} for name in texts),
    ]


def output_tensors(result: Prediction, *, document: str, manifest: Manifest) -> list[Tensor]:
    """Outputs of a prediction, in the order of the metadata.

    Args:
        result: the prediction.
        document: its document (`result_document`).
        manifest: manifest of the bundle.
    """
    classes = manifest.classes
    numbers = {
        "probability": [result.probability[name] for name in classes],
        "fold_probability": [fold.probability[name] for fold in result.folds for name in classes],
        "spread": [result.spread],
    }
    texts = {
        "decision": result.decision,
        "issues": json.dumps([issue.to_dict() for issue in result.warnings]),
        "case_id": result.case_id,
        "document": document,
    }
    return [
        Tensor(
            name=entry["name"],
            datatype=entry["datatype"],
            shape=tuple(entry["shape"]),
            values=np.array(numbers[entry["name"]], dtype=np.float64)
            if entry["name"] in numbers
            else (texts[entry["name"]].encode(),),
        )
        for entry in output_metadata(manifest)
    ]


def result_document(result: CaseResult, *, bundle: Bundle, engine: EngineRecord, version: str) -> str:
    """The document of `tmi predict --json` for one case.

    Args:
        result: its result.
        bundle: the bundle.
        engine: record of the engine.
        version: version of this package.
    """
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return canonical_json(document([result], bundle=bundle, engine=engine, batch=1, created=created, version=version))
