"""Bundles of every row of the paper's tables that has a network, in miniature (one epoch, two folds).

A bundle predicts the held-out cases as recorded in training, from the files of the row's active modalities alone.
"""

from __future__ import annotations

import csv
import io
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from factories.nano import nano
from factories.small_comparison import Comparison
from factories.tmi_command import tmi
from tmi.export.bundle.writer import export_run
from tmi.export.graphs import partition as fold_graphs
from tmi.runtime.bundle.check_result import ParityError
from tmi.runtime.bundle.reader import Bundle, open_bundle
from tmi.runtime.engines.registry import engine_spec, installed
from tmi.runtime.serving.predictor import Predictor
from tmi.runtime.serving.results import Prediction, RejectedCase
from tmi.toolkit.cases.case import CLINICAL_FILE, CT_FILE, RADIOMICS_FILE
from tmi.toolkit.config.schema import MODALITIES
from tmi.toolkit.errors import UsageError
from tmi.toolkit.models.baselines.simpleff import SliceFeatures
from tmi.toolkit.models.registry import active_modalities, configured_model, encoder_roles
from tmi.toolkit.run_folder import SUMMARY_FILE, RunFolder
from tmi.toolkit.storage.atomic_files import read_json
from tmi.training.comparison.paper_tables import TABLES
from tmi.training.comparison.plan import make_plan, select_tables

pytestmark = pytest.mark.long

FILES = {"image": CT_FILE, "radiomics": RADIOMICS_FILE, "clinical": CLINICAL_FILE}
PLANNED = {run.key: run.config for run in make_plan(nano(), select_tables("all")).runs}
RUNS = {key: config for key, config in PLANNED.items() if configured_model(config).trainer == "torch"}
LAMBDAS = {row.key for row in TABLES[4].rows} & set(RUNS)
"""Rows whose networks differ from TMI-CLNet's in their weights alone."""
ROWS = [key for key in RUNS if key not in LAMBDAS]
FAST_ROWS = ["resnet50", "vit", "simpleff", "hfbsurv", "mmd", "image", "radiomics", "clinical-image"]
"""Rows that are exported in every test run; the others are exported in the slow tests."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def exported(small_comparison: Comparison, tmp_path_factory: pytest.TempPathFactory):
    """Bundle of a row, exported once for each set of artefacts."""
    bundles: dict[tuple[str, tuple[str, ...]], Bundle] = {}

    def of(key: str, *artefacts: str) -> Bundle:
        if (key, artefacts) not in bundles:
            out = tmp_path_factory.mktemp("rows") / key
            bundles[key, artefacts] = export_run(small_comparison.folder / "runs" / key, out, artefacts=artefacts)
        return bundles[key, artefacts]

    return of


def stripped(cohort: Path, modalities: tuple[str, ...], folder: Path) -> Path:
    """Copies the cohort's cases with the files of these modalities alone."""
    for case in sorted(p for p in cohort.iterdir() if p.is_dir()):
        (folder / case.name).mkdir(parents=True)
        for modality in modalities:
            shutil.copyfile(case / FILES[modality], folder / case.name / FILES[modality])
    return folder


def largest_difference(bundle: Bundle, run: RunFolder, cases: Path, engine: str) -> float:
    """Largest difference between a bundle's and the training's probability, each case by the fold that held it out."""
    with Predictor.open(bundle.folder, engine=engine, threads=1, verify=False) as predictor:
        results = {r.case_id: r for r in predictor.predict(sorted(cases.iterdir()), batch=5)}
    differences = []
    for position, split in enumerate(run.folds):
        rows = csv.DictReader(io.StringIO(run.fold(split.fold).predictions.read_text()))
        recorded = {row["case_id"]: float(row["calibrated_bad"]) for row in rows}
        assert tuple(recorded) == split.test
        for case_id, p in recorded.items():
            result = results[case_id]
            assert isinstance(result, Prediction), result
            assert result.folds[position].fold == split.fold
            differences.append(abs(result.folds[position].probability["bad"] - p))
    return max(differences)


def check_row(comparison: Comparison, bundle: Bundle, key: str, engines: tuple[str, ...], tmp_path: Path) -> None:
    """Each engine predicts the row's held-out cases as recorded, from the active modalities alone."""
    run = RunFolder.open(comparison.folder / "runs" / key).require_finished()
    cases = stripped(comparison.cohort, active_modalities(run.config), tmp_path / "cases")
    for engine in engines:
        assert largest_difference(bundle, run, cases, engine) <= max(engine_spec(engine).max_abs_err, 1e-5), engine
    assert bundle.manifest.threshold == run.threshold


@pytest.mark.parametrize("key", RUNS)
def test_row_metrics_are_finite_and_networks_load(small_comparison, key):
    """Every mean over folds is finite, and every fold's network loads with the row's encoders."""
    run = RunFolder.open(small_comparison.folder / "runs" / key)
    summary = read_json(run.path / SUMMARY_FILE, kind="run")
    assert all(math.isfinite(entry["mean"]) for entry in summary["over_folds"].values())
    for split in run.folds:
        network = fold_graphs.FoldModels(run).network(split.fold)
        assert (network.ct_encoder is not None) == ("image" in active_modalities(run.config))


@pytest.mark.parametrize("key", FAST_ROWS)
def test_bundle_predicts_as_in_training(small_comparison, exported, tmp_path, key):
    """TorchScript and eager predict the held-out cases as recorded in training."""
    check_row(small_comparison, exported(key, "torchscript"), key, ("torchscript", "eager"), tmp_path)


@pytest.mark.parametrize("key", ["simpleff"])
def test_bundle_predicts_as_in_training_without_torch(small_comparison, exported, tmp_path, key):
    """The engines without torch predict the held-out cases as recorded in training."""
    engines = ("onnx", *(e for e in ("openvino",) if installed(e)))
    check_row(small_comparison, exported(key, "onnx"), key, engines, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("key", RUNS)
def test_every_row_on_every_engine(small_comparison, exported, tmp_path, key):
    """Every engine predicts every row's held-out cases as recorded in training."""
    engines = ("onnx", "torchscript", "eager", *(e for e in ("openvino",) if installed(e)))
    bundle = exported(key, "onnx", "torchscript")
    check_row(small_comparison, bundle, key, engines, tmp_path)
    assert {g.role for g in bundle.manifest.graphs} == {*encoder_roles(active_modalities(RUNS[key])), "fusion"}


@pytest.mark.slow
@pytest.mark.parametrize("key", ROWS)
def test_fp16_graphs_pass_emulation(small_comparison, tmp_path, key):
    """The FP16 graphs of every row pass their parity checks in emulation."""
    bundle = export_run(small_comparison.folder / "runs" / key, tmp_path / "bundle", artefacts=("trt",))
    assert bundle.has("onnx-typed")
    assert {r.check for r in bundle.manifest.parity if r.engine == "fp16-emulation"} >= {"finite-inside", "logits"}


@pytest.mark.parametrize("key", FAST_ROWS)
def test_bundle_has_files_of_active_modalities(exported, key):
    """A bundle has the graphs, tokenizers and scalers of its active modalities and no others."""
    bundle = exported(key, "torchscript")
    manifest, modalities = bundle.manifest, active_modalities(RUNS[key])
    assert manifest.modalities == modalities
    assert {g.role for g in manifest.graphs} == {*encoder_roles(modalities), "fusion"}
    assert (bundle.folder / "tokenizers").exists() == ("clinical" in modalities)
    assert (bundle.folder / "scalers").exists() == ("radiomics" in modalities)
    assert all((fold.scaler is not None) == ("radiomics" in modalities) for fold in manifest.folds)


@pytest.mark.parametrize("key", ["image", "simpleff", "mmd"])
def test_case_without_active_modality_is_rejected(small_comparison, exported, tmp_path, key):
    """A case that lacks the file of an active modality is rejected with the file's name."""
    bundle = exported(key, "torchscript")
    missing = {"image": "image", "simpleff": "radiomics", "mmd": "clinical"}[key]
    cases = stripped(small_comparison.cohort, tuple(m for m in MODALITIES if m != missing), tmp_path / "cases")
    with Predictor.open(bundle.folder, engine="torchscript", threads=1, verify=False) as predictor:
        (result,) = predictor.predict(cases / "C000")
    assert isinstance(result, RejectedCase)
    assert FILES[missing] in result.what


@pytest.mark.parametrize("key", ["radiomics", "simpleff"])
def test_commands_accept_bundle_of_other_network(small_comparison, exported, tmp_path, key):
    """`tmi verify`, `inspect` and `predict --reuse` run on a bundle of a network other than TMI-CLNet."""
    bundle = exported(key, "torchscript").folder
    verified = tmi("verify", bundle, "--engine", "torchscript", "--json")
    assert verified.code == 0, verified.err
    assert {g["graph"] for g in verified.document["gates"]} >= {"pipeline"}
    inspected = tmi("inspect", bundle)
    system = RUNS[key].system.name
    assert f"network    {system}, uses {', '.join(active_modalities(RUNS[key]))}\n" in inspected.out
    cases = stripped(small_comparison.cohort, active_modalities(RUNS[key]), tmp_path / "cases")
    roles = encoder_roles(active_modalities(RUNS[key]))
    words = ("predict", cases / "C000", "--bundle", bundle, "--engine", "torchscript", "--json", "--reuse")
    for reused in ((), roles):
        predicted = tmi(*words)
        assert predicted.code == 0, predicted.err
        (result,) = predicted.document["results"]
        warning = {w["code"]: w["message"] for w in result["warnings"]}["other-network"]
        assert warning == f"the network is {system} and uses only {', '.join(active_modalities(RUNS[key]))}"
        assert tuple(result["reused"]) == reused
        assert all(role in roles or result["seconds"][role] < 1e-3 for role in ("ct", "text"))


@pytest.mark.parametrize("command", [("explain", "{case}"), ("report", "{case}")])
def test_explain_and_report_reject_other_networks(small_comparison, exported, tmp_path, command):
    """`tmi explain` and `tmi report` accept TMI-CLNet alone."""
    bundle = exported("simpleff", "torchscript").folder
    case = small_comparison.cohort / "C000"
    words = [word.format(case=case) for word in command]
    outcome = tmi(*words, "--bundle", bundle, "--out", tmp_path / "out")
    assert outcome.code == 2
    assert "is of system simpleff on radiomics, image" in outcome.err


# Planted faults


def test_lost_temperature_is_detected(small_comparison, tmp_path, monkeypatch):
    """Without the temperature the held-out predictions differ by more than the engine's error bound."""
    run = RunFolder.open(small_comparison.folder / "runs" / "simpleff")
    assert all(abs(run.fold(s.fold).temperature - 1) > 0.01 for s in run.folds), "every temperature differs from 1"
    monkeypatch.setattr(fold_graphs, "apply_temperature", lambda config, state, temperature, prefix="": dict(state))
    bundle = export_run(run.path, tmp_path / "bundle", artefacts=("torchscript",))
    cases = stripped(small_comparison.cohort, active_modalities(run.config), tmp_path / "cases")
    assert largest_difference(bundle, run, cases, "torchscript") > engine_spec("torchscript").max_abs_err


def test_wrong_slice_fails_parity_checks(small_comparison, tmp_path, monkeypatch):
    """A graph that uses other slices fails the feature check, and no bundle is written."""
    from tmi.export.graphs import torchscript as torchscript_export

    write = torchscript_export.write_torchscript

    def shifted(module, spec, example, path):
        if isinstance(module, SliceFeatures):
            before, module.slices = module.slices, [s - 1 for s in module.slices]
            write(module, spec, example, path)
            module.slices = before
        else:
            write(module, spec, example, path)

    monkeypatch.setattr(torchscript_export, "write_torchscript", shifted)
    with pytest.raises(ParityError, match="features of ct-0") as error:
        export_run(small_comparison.folder / "runs" / "simpleff", tmp_path / "bundle", artefacts=("torchscript",))
    assert {r.check for r in error.value.records if not r.passed} >= {"features"}
    assert not (tmp_path / "bundle").exists()


# Rejected runs


@pytest.mark.parametrize("key", ["svm", "rf"])
def test_run_without_network_is_not_exported(small_comparison, tmp_path, key):
    """Exporting a scikit-learn run is a usage error that lists the models with a network."""
    with pytest.raises(UsageError, match=f"is of the model {key}, which has no network to export") as error:
        export_run(small_comparison.folder / "runs" / key, tmp_path / "bundle")
    assert "simpleff" in error.value.fix


@pytest.mark.parametrize("command", ["export", "audit"])
def test_weights_of_older_version_are_reported(small_comparison, tmp_path, command):
    """Weights with the tensor names of an older version give exit code 6 and name the version as the fix."""
    run = RunFolder.open(shutil.copytree(small_comparison.folder / "runs" / "mmd", tmp_path / "run"))
    for split in run.folds:
        state = load_file(run.fold(split.fold).model)
        older = {k.replace("ct_encoder.", "encode.ct_encoder.").replace("fusion.", ""): t for k, t in state.items()}
        save_file(older, run.fold(split.fold).model)
    run.finish()
    words = ["export", run.path, "--out", tmp_path / "bundle"] if command == "export" else [
        "audit", run.path, small_comparison.cohort
    ]  # fmt: skip
    outcome = tmi(*words)
    assert outcome.code == 6
    assert "are not those of the network in its config" in outcome.err
    assert "the version of tmi that trained" in outcome.err
    assert "Traceback" not in outcome.err


def test_rows_have_distinct_predictions(small_comparison):
    """No two rows with different networks predict the same, so a mixed-up bundle would be detected."""
    probabilities = {}
    for key in ROWS:
        run = RunFolder.open(small_comparison.folder / "runs" / key)
        rows = [csv.DictReader(io.StringIO(run.fold(s.fold).predictions.read_text())) for s in run.folds]
        probabilities[key] = np.array([float(row["calibrated_bad"]) for table in rows for row in table])
    for a in probabilities:
        for b in probabilities:
            assert a == b or np.abs(probabilities[a] - probabilities[b]).max() > 1e-3, (a, b)


def test_bundle_is_read_back_as_written(exported):
    """`open_bundle` returns the manifest that the export returned."""
    bundle = exported("simpleff", "torchscript")
    assert open_bundle(bundle.folder).manifest == bundle.manifest
