"""Calibration in a bundle: logits divided by each fold's temperature, and the run's threshold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from factories.cached_traces import use_cached_traces
from factories.nano import nano
from factories.random_run import write_random_run
from tmi.export.bundle.writer import export_run
from tmi.export.checks.eager_reference import compute_eager_reference
from tmi.export.graphs.partition import FoldModels, RunWeights, partition_run
from tmi.runtime.bundle.reader import open_bundle
from tmi.runtime.verification.golden_inputs import make_golden
from tmi.runtime.verification.outputs import Outputs
from tmi.toolkit.errors import DamagedError
from tmi.toolkit.run_folder import RunFolder

TEMPERATURES = (2.5, 0.4)


def calibrate(run: Path, temperatures: tuple[float, float], threshold: float) -> None:
    for fold, temperature in enumerate(temperatures):
        path = run / f"fold{fold}" / "metrics.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"calibration": {"temperature": temperature}}))
    path = run / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"calibration": {"threshold": threshold}}))
    RunFolder.open(run).finish()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, nano_bundle: Path) -> tuple[Path, Outputs]:
    """A calibrated run's bundle, and the uncalibrated outputs of the run's models for its golden inputs."""
    folder = tmp_path_factory.mktemp("calibrated")
    run = write_random_run(folder / "run", nano(), folds=2, seed=3)
    calibrate(run, TEMPERATURES, 0.31)
    with pytest.MonkeyPatch.context() as patch:
        use_cached_traces(patch, nano_bundle)
        bundle = export_run(run, folder / "bundle", artefacts=("onnx",))
    calibrate(run, (1.0, 1.0), 0.5)
    raw = RunFolder.open(run)
    golden = make_golden(
        raw.config,
        seed=bundle.manifest.golden.seed,
        count=bundle.manifest.golden.count,
        folds=2,
        vocabularies=bundle.manifest.golden.vocabularies,
    )
    return folder / "bundle", compute_eager_reference(FoldModels(raw), partition_run(raw), golden)


@pytest.mark.parametrize("file", ["golden.safetensors", "evidence/onnx.safetensors"])
def test_engine_outputs_calibrated_logits(exported, file):
    """Logits of the reference and of every engine are the raw logits divided by each fold's temperature."""
    bundle, raw = exported
    calibrated = load_file(bundle / file)
    divided = raw.logits_BFK / np.array(TEMPERATURES)[None, :, None]
    np.testing.assert_allclose(calibrated["logits"], divided, rtol=1e-4, atol=1e-5)
    assert float(np.abs(divided - raw.logits_BFK).max()) > 0.1, "the temperatures make a difference"


def test_manifest_and_card_report_calibration(exported):
    """Manifest and model card report the run's threshold and temperatures."""
    bundle, _ = exported
    manifest = open_bundle(bundle).manifest
    assert manifest.threshold == 0.31
    assert manifest.temperatures == TEMPERATURES
    card = (bundle / "MODEL_CARD.md").read_text()
    assert "divided by temperatures fitted on their inner validation splits (2.5, 0.4)" in card
    assert "from 0.31 on" in card


@pytest.mark.parametrize("value", [0, -1, "2", True, None])
def test_invalid_temperature_is_damage(tmp_path, value):
    """A temperature must be a positive number."""
    run = write_random_run(tmp_path / "run", nano(), folds=2)
    calibrate(run, (value, 1.0), 0.5)
    with pytest.raises(DamagedError, match="the calibration's temperature is"):
        RunWeights(RunFolder.open(run)).calibrated(0)
