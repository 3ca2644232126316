"""A model of another package: trained, exported and predicted without a change of this one.

The package is `factories.toy_model` (row) and `factories.toy_network` (network, loss), with an entry point.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from factories.cases import write_cohort
from factories.forked_commands import ForkedResult, run_forked
from factories.nano import NANO_OPTIONS
from factories.networks import LABELS, configured, inputs
from factories.paths import ROOT
from factories.tmi_command import tmi
from factories.toy_network import ToyEncoder, toy_loss
from tmi.runtime.bundle.reader import open_bundle
from tmi.runtime.engines.registry import engine_spec
from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import UsageError
from tmi.toolkit.model_registry import ENTRY_POINTS, model_names, model_spec, unregister_model
from tmi.toolkit.models.registry import active_modalities, encoder_names, feature_width
from tmi.toolkit.run_folder import RunFolder
from tmi.toolkit.storage.serialization import from_json, to_json
from tmi.training.systems.factory import build_network, loss_function

TORCH = {"torch", "transformers", "monai", "lightning", "sklearn", "onnxscript"}
OPTIONS = (*NANO_OPTIONS, "--set", "system.parameters.channels=4")


@pytest.fixture(scope="module", autouse=True)
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The package as `pip install` leaves it, for this process and those that it starts."""
    folder = tmp_path_factory.mktemp("site")
    metadata = folder / "toy_model-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-model\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\ntoy = factories.toy_model:TOY\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", os.pathsep.join((str(folder), str(ROOT / "tests"))))
        yield
    unregister_model("toy")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Run of one epoch and two folds."""
    folder = tmp_path_factory.mktemp("toy")
    cohort = write_cohort(folder / "cohort", cases=8, with_mask=False)
    words = ("--model", "toy", "--preset", "tiny", "--folds", "2", "--epochs", "1", "--accelerator", "cpu")
    trained = tmi("train", cohort, *words, *OPTIONS, "--out", folder / "run")
    assert trained.code == 0, trained.err
    return RunFolder.open(folder / "run").require_finished()


@pytest.fixture(scope="module")
def bundle(run: RunFolder) -> Path:
    folder = run.path.with_name("bundle")
    exported = tmi("export", run.path, "--engine", "onnx", "--out", folder)
    assert exported.code == 0, exported.err
    return folder


@pytest.fixture(scope="module")
def predicted(run: RunFolder, bundle: Path) -> ForkedResult:
    cohort = run.path.with_name("cohort")
    (result,) = run_forked([("predict", cohort, "--bundle", bundle, "--engine", "onnx", "--json")], cwd=run.path.parent)
    assert result.code == 0, result.err
    return result


def test_installed_model_is_known():
    """The entry point adds the model to the known names; its parameters and network are those of its row."""
    config = configured("system.name=toy", "system.parameters.channels=5")
    assert model_names()[-1] == "toy"
    assert model_spec("toy") is model_spec(config.system.name)
    assert active_modalities(config) == ("clinical", "image")
    assert encoder_names(config) == ("text",)
    assert feature_width(config, "image") == 5
    network = build_network(config, seed=0)
    assert isinstance(network.ct_encoder, ToyEncoder)
    assert torch.isfinite(loss_function(config)(network(**inputs()), LABELS, config.loss).total)
    assert loss_function(config) is toy_loss


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("system.name=toy", "system.parameters.width=5"), "unknown key 'width'"),
        (("system.name=toy", "system.parameters.channels=many"), "'many' is not int"),
        (("system.parameters.channels=5",), "model tmi-clnet has none"),
    ],
)
def test_parameters_are_those_of_the_row(settings, message):
    """A parameter that the row's dataclass does not have, or of another type, is rejected."""
    with pytest.raises(UsageError, match=message):
        configured(*settings)


def test_defaults_of_parameters_are_recorded():
    """A config states the parameters that were left out, and equals the one that states them and its JSON."""
    config = configured("system.name=toy")
    assert config.system.parameters == {"channels": 3}
    assert config == configured("system.name=toy", "system.parameters.channels=3")
    assert from_json(Config, json.loads(json.dumps(to_json(config))), where="config") == config


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ("factories.broken_models:RAISES", "cannot be imported: TypeError: made for another version"),
        ("factories.broken_models:NO_SUCH_ROW", "cannot be imported: "),
        ("factories.broken_models:TEXT", "is no ModelSpec"),
    ],
)
def test_row_of_a_broken_package_is_named(tmp_path, monkeypatch, point, message):
    """A row that cannot be read is a usage error where it is asked for, and leaves the other models alone."""
    metadata = tmp_path / "broken_model-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-model\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\nbroken = {point}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=re.escape(message)):
        model_spec("broken")
    assert "broken" in model_names()
    assert "tmi-clnet" in model_names(trainer="torch")
    assert "broken" not in model_names(trainer="torch")


@pytest.mark.long
def test_trained_with_its_own_loss(run):
    """The run records the model and its parameters, and every fold has its weights."""
    assert (run.config.system.name, dict(run.config.system.parameters)) == ("toy", {"channels": 4})
    assert all(run.fold(split.fold).model.is_file() for split in run.folds)


@pytest.mark.long
def test_exported_with_parity_checks(bundle):
    """The bundle has the network's graphs, and its parity checks passed."""
    manifest = open_bundle(bundle).manifest
    assert manifest.modalities == ("clinical", "image")
    assert {graph.role for graph in manifest.graphs} == {"ct", "text", "fusion"}
    assert {check.check for check in manifest.parity if check.passed} >= {"logits"}


@pytest.mark.long
def test_predicts_without_torch(run, predicted):
    """A process without torch predicts the held-out cases as recorded in training."""
    assert not TORCH & set(predicted.heavy)
    results = {result["case_id"]: result for result in json.loads(predicted.out)["results"]}
    assert len(results) == 8
    for position, split in enumerate(run.folds):
        with run.fold(split.fold).predictions.open(newline="", encoding="utf-8") as stream:
            recorded = {row["case_id"]: float(row["calibrated_bad"]) for row in csv.DictReader(stream)}
        for case_id, p in recorded.items():
            fold = results[case_id]["folds"][position]
            assert fold["probability"]["bad"] == pytest.approx(p, abs=engine_spec("onnx").max_abs_err)


@pytest.mark.long
def test_other_commands_accept_the_bundle(run, bundle):
    """`tmi inspect` names the model; `tmi explain` rejects it with its name."""
    inspected = tmi("inspect", bundle)
    assert "network    toy, uses clinical, image\n" in inspected.out
    explained = tmi("explain", run.path.with_name("cohort") / "C000", "--bundle", bundle, "--out", run.path / "maps")
    assert explained.code == 2
    assert "is of system toy on clinical, image" in explained.err


@pytest.mark.long
def test_bundle_without_its_package(bundle):
    """Where the package is not installed, the error names the model and says why it is unknown."""
    (result,) = run_forked([("inspect", bundle)], cwd=bundle.parent, environment={"PYTHONPATH": ""})
    assert result.code == 6
    assert "unknown model 'toy', which no installed package adds" in result.err
    assert "fix: install the package that adds the model" in result.err
