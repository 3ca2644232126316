"""`tmi export --precision auto`: INT8 is tried, and left out with the reason where it cannot be had."""

from __future__ import annotations

import shutil

import pytest

from factories.cached_traces import use_cached_traces
from factories.random_run import write_random_run
from factories.tmi_command import tmi
from tmi.export.bundle import delivery_stages, network_stages
from tmi.export.bundle.context import ExportContext, ExportSettings
from tmi.export.bundle.request_checks import tries_int8
from tmi.export.checks.validation_set import CalibratedCase, RealCase, ValidationSet
from tmi.export.graphs.partition import GraphPartition
from tmi.runtime.bundle.check_result import ParityError
from tmi.runtime.bundle.int8_records import CalibrationCase
from tmi.runtime.bundle.reader import open_bundle
from tmi.runtime.verification.golden_inputs import golden_from_manifest
from tmi.runtime.verification.verify import read_references
from tmi.toolkit.errors import UsageError
from tmi.toolkit.run_folder import RunFolder


@pytest.fixture
def context(nano_bundle, nano_run, tmp_path):
    """An export before its stage `int8`, calibrated on cases that are none of the run's, which the audit rejects."""
    folder = tmp_path / "bundle"
    shutil.copytree(nano_bundle, folder)
    bundle = open_bundle(folder)
    golden, reference = golden_from_manifest(bundle.manifest), read_references(bundle).float32
    rows = [RealCase(inputs=golden.rows([row]), reference=reference.rows([row])) for row in (0, 2)]
    record = CalibrationCase(case="0" * 64, volume="0" * 64)
    graphs = tuple(g.name for g in bundle.manifest.graphs if g.role == "ct")
    cases = [CalibratedCase(record=record, graphs=graphs, case=row) for row in rows]
    made = ExportContext(
        out=folder,
        folder=folder,
        artefacts=("onnx", "onnx-int8"),
        settings=ExportSettings(calibration=tmp_path, int8_optional=True),
        progress=lambda line: None,
        created="2026-01-01T00:00:00+00:00",
    )
    made.manifest, made.run = bundle.manifest, RunFolder.open(nano_run)
    made.partition = GraphPartition(encoders=(), folds=())
    made.validation_set = ValidationSet(golden=golden, reference=reference, calibration=cases)
    return made


def files(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_graphs_that_fail_are_left_out_with_the_reason(context):
    """No file and no record of a failed INT8 remains; both engines are rejected with the failed check."""
    before = files(context.folder)
    delivery_stages.int8(context)
    assert files(context.folder) == before
    assert context.artefacts == ("onnx",)
    assert context.records == []
    assert context.manifest.int8 is None
    assert not any("onnx-int8" in g.artefacts for g in context.manifest.graphs)
    assert set(context.manifest.engines_rejected) == {"openvino-int8", "onnx-int8"}
    assert "a fold was not trained on: ct-0: unknown" in context.manifest.engines_rejected["onnx-int8"]


def test_graphs_that_were_asked_for_end_the_export(context):
    """Without `auto` the same failure is an error."""
    context.settings = ExportSettings(calibration=context.settings.calibration)
    with pytest.raises(ParityError, match="a fold was not trained on: ct-0: unknown"):
        delivery_stages.int8(context)


def test_no_calibration_is_a_reason_too(context, monkeypatch):
    """A cohort that cannot calibrate the run is the reason, and no INT8 graph is written."""
    from tmi.export.quantization import calibration_cases

    def reject(*args):
        raise UsageError("the cohort is another one", fix="name its own")

    monkeypatch.setattr(calibration_cases, "read_calibration_cases", reject)
    assert network_stages._calibration_cases(context, models=None) == []
    delivery_stages.int8(context)
    assert context.manifest.engines_rejected["openvino-int8"] == "the cohort is another one"
    context.settings = ExportSettings(calibration=context.settings.calibration)
    context.artefacts = ("onnx", "onnx-int8")
    with pytest.raises(UsageError, match="is another one"):
        network_stages._calibration_cases(context, models=None)


@pytest.mark.parametrize(
    ("engines", "precision", "tried"),
    [
        (["onnx"], "auto", True),
        (["onnx", "torchscript"], "auto", True),
        (["onnx"], None, False),
        (["onnx"], "int8", False),
        (["onnx-int8"], "auto", False),
        (["onnx", "trt-rtx"], "auto", False),
    ],
)
def test_auto_tries_int8_without_tensorrt(engines, precision, tried):
    """`auto` of a TensorRT engine searches that engine's precision, as before."""
    assert tries_int8(engines, precision) == tried


@pytest.mark.long
def test_auto_takes_int8_where_it_passes(nano_bundle, nano_config, synthetic_cohort, tmp_path, monkeypatch):
    """The command tries INT8 on the given cohort and takes it; without a cohort it says that it does not."""
    monkeypatch.chdir(tmp_path)
    run = write_random_run(tmp_path / "run", nano_config, folds=2, seed=5, cohort=synthetic_cohort)
    use_cached_traces(monkeypatch, nano_bundle)
    words = ("export", run, "--precision", "auto", "--engine", "onnx", "--out", tmp_path / "bundle")
    outcome = tmi(*words, "--calibration", synthetic_cohort)
    assert outcome.code == 0, outcome.err
    assert open_bundle(tmp_path / "bundle").has("onnx-int8")
    without = tmi(*words, "--force")
    assert (without.code, "INT8 is not tried" in without.err) == (0, True)
    assert not open_bundle(tmp_path / "bundle").has("onnx-int8")
