"""What the manifest claims of the models is part of the golden case: edited claims fail under fresh digests."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from factories.cases import write_case
from factories.paths import ROOT
from factories.planted_faults import manifest_at, reseal
from factories.tmi_command import tmi
from tmi.runtime.bundle.manifest_records import MetricSummary, RunSummary
from tmi.runtime.bundle.reader import open_bundle
from tmi.runtime.verification.preprocessing_check import CLAIMS, check_preprocessing, output_metadata

PUBLISHED = ROOT / "tests" / "unit" / "runtime" / "bundle" / "data" / "tmi-bundle-2" / "bundle"


@pytest.fixture
def folder(nano_bundle, tmp_path) -> Path:
    return shutil.copytree(nano_bundle, tmp_path / "bundle")


def edit_scaler(folder: Path) -> None:
    path = folder / "scalers" / "fold0.json"
    scaler = json.loads(path.read_text())
    scaler["centre"][7] += 1e-6 * max(1.0, abs(scaler["centre"][7]))
    path.write_text(json.dumps(scaler))
    reseal(folder)


def edit_tokenizer(folder: Path) -> None:
    path = folder / "tokenizers" / "text-0.json"
    path.write_text(path.read_text() + "\n")
    reseal(folder)


def edit_metrics(folder: Path) -> None:
    run = manifest_at(folder).run
    reseal(folder, run=replace(run, summary=RunSummary(over_folds={"roc_auc": MetricSummary(mean=0.99, std=0.01)})))


def rename_fold(folder: Path) -> None:
    """Exchange the scalers of two folds in the manifest."""
    first, second = manifest_at(folder).folds
    reseal(folder, folds=(replace(first, scaler=second.scaler), replace(second, scaler=first.scaler)))


FORGERIES: dict[str, tuple[Callable[[Path], None], str]] = {
    "synthetic": (lambda f: reseal(f, synthetic=not manifest_at(f).synthetic), "synthetic is "),
    "positive class": (lambda f: reseal(f, positive=0), "positive is 0, at the export it was 1"),
    "threshold": (lambda f: reseal(f, threshold=0.6), r"threshold is 0\.6"),
    "scaler": (edit_scaler, r"scalers/fold0\.json changed after the export"),
    "tokenizer": (edit_tokenizer, r"tokenizers/text-0\.json changed after the export"),
    "roles": (rename_fold, "roles of the manifest changed"),
    "metrics": (edit_metrics, "run of the manifest changed"),
    "preset": (lambda f: reseal(f, preset="paper"), "run of the manifest changed"),
    "config": (
        lambda f: reseal(f, config=replace(manifest_at(f).config, preset="paper")),
        "config of the manifest changed",
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_claim_is_detected(folder, name):
    """A claim that was edited under fresh digests fails the check `meaning`, which names it."""
    forge, message = FORGERIES[name]
    forge(folder)
    meaning = check_preprocessing(open_bundle(folder))[0]
    assert not meaning.passed
    assert re.search(message, meaning.detail), meaning.detail


@pytest.mark.parametrize("name", ["synthetic", "scaler"])
def test_forged_claim_ends_a_prediction(folder, name, tmp_path):
    """The self-test of a prediction, and `tmi verify`, end with exit code 4."""
    FORGERIES[name][0](folder)
    case = write_case(tmp_path / "case")
    for words in (["predict", case, "--bundle", folder, "--engine", "onnx"], ["verify", folder, "--engine", "onnx"]):
        outcome = tmi(*words)
        assert outcome.code == 4, outcome.err
        assert "meaning of pipeline" in outcome.err


def test_unchanged_bundle_passes(nano_bundle):
    """All claims of a new bundle are covered, and pass."""
    bundle = open_bundle(nano_bundle)
    assert set(CLAIMS) - {"trust"} <= set(output_metadata(bundle)), "its run has no trust statistics"
    meaning = check_preprocessing(bundle)[0]
    assert meaning.passed
    assert "scalers" in meaning.detail


def test_bundle_of_an_earlier_version_passes():
    """A bundle that was published before its claims were covered stays readable."""
    meaning = check_preprocessing(open_bundle(PUBLISHED))[0]
    assert meaning.passed
    assert "scalers" not in meaning.detail
