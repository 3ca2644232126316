"""A bundle that an earlier version wrote is opened by this one and gives the same predictions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from factories.paths import ROOT
from factories.tmi_command import tmi
from tmi.runtime import Prediction, Predictor
from tmi.runtime.bundle.reader import open_bundle

PUBLISHED = ROOT / "tests" / "unit" / "runtime" / "bundle" / "data" / "tmi-bundle-2"
EAGER_ERROR = 1e-5
"""Bound on |p - recorded p| of eager and ONNX Runtime: other processors add floats in another order."""


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A copy: opening a bundle may write beside it."""
    return shutil.copytree(PUBLISHED, tmp_path / "published")


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    """The result of the version that wrote the bundle."""
    (result,) = json.loads((PUBLISHED / "predictions.json").read_text())["results"]
    return result


def test_published_bundle_has_its_schema(published):
    """The manifest says `tmi-bundle/2`, whatever this version writes."""
    assert json.loads((published / "bundle" / "manifest.json").read_text())["schema"] == "tmi-bundle/2"
    assert open_bundle(published / "bundle").manifest.modalities == ("clinical", "radiomics", "image")


@pytest.mark.parametrize("engine", ["onnx", "openvino", "eager"])
def test_published_bundle_gives_the_recorded_prediction(published, recorded, engine):
    """Every engine passes the startup self-test and predicts what the writing version predicted."""
    with Predictor.open(published / "bundle", engine=engine, precision="fp32", threads=1) as predictor:
        (prediction,) = predictor.predict([published / "case"])
    assert isinstance(prediction, Prediction)
    assert prediction.decision == recorded["decision"]
    assert prediction.probability == pytest.approx(recorded["probability"], abs=EAGER_ERROR)
    assert [fold.probability for fold in prediction.folds] == [
        pytest.approx(fold["probability"], abs=EAGER_ERROR) for fold in recorded["folds"]
    ]


def test_prediction_of_published_bundle_keeps_its_keys(published, recorded):
    """The JSON document has the keys that it was published with."""
    words = ("predict", published / "case", "--bundle", published / "bundle", "--engine", "onnx", "--threads", 1)
    document = tmi(*words, "--json").document
    assert set(recorded) <= set(document["results"][0])
    assert set(json.loads((PUBLISHED / "predictions.json").read_text())) <= set(document)


def test_published_bundle_is_verified(published):
    """`tmi verify` passes on it."""
    outcome = tmi("verify", published / "bundle", "--engine", "onnx", "--threads", 1)
    assert outcome.code == 0, outcome.err
