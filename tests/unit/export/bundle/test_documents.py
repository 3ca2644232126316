"""What a bundle says to people and to tools: model card, bill of materials, evidence, real cases."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
from referencing import Registry, Resource
from safetensors.numpy import load_file

from factories.cases import write_case
from factories.random_run import write_random_run
from factories.tmi_command import tmi
from tmi.export.bundle.model_card import class_counts, model_card, releasable_counts
from tmi.export.bundle.sbom import sbom
from tmi.export.bundle.writer import export_run
from tmi.runtime.bundle.manifest import Manifest
from tmi.runtime.bundle.reader import open_bundle
from tmi.runtime.verification.parity import Outputs, relative_error
from tmi.toolkit.run_folder import RunFolder


@pytest.fixture(scope="module")
def manifest(nano_bundle: Path) -> Manifest:
    return open_bundle(nano_bundle).manifest


def test_the_bill_of_materials_is_valid_cyclonedx_and_names_what_was_installed(nano_bundle, manifest):
    document = json.loads((nano_bundle / "sbom.cdx.json").read_text())
    schemas = files("cyclonedx.schema._res")
    resources = {
        f"http://cyclonedx.org/schema/{name}": Resource.from_contents(json.loads((schemas / name).read_text("utf-8")))
        for name in ("spdx.SNAPSHOT.schema.json", "jsf-0.82.SNAPSHOT.schema.json")
    }
    registry = Registry().with_resources(resources.items())
    schema = json.loads((schemas / "bom-1.6.SNAPSHOT.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft7Validator(schema, registry=registry).validate(document)
    versions = {c["name"]: c["version"] for c in document["components"]}
    for name in ("tmi-clnet", "torch", "onnx", "onnxruntime", "numpy", "safetensors", "monai", "transformers"):
        assert versions[name] == manifest.versions[name]
    assert document["metadata"]["component"]["type"] == "machine-learning-model"
    assert "pytest" not in versions  # what only tests need is no part of a bundle


def test_the_same_bundle_and_packages_give_the_same_bill_of_materials(manifest):
    assert sbom(manifest) == sbom(manifest)


def test_the_model_card_says_what_for_how_good_how_equal_and_where_it_ends(nano_bundle):
    card = (nano_bundle / "MODEL_CARD.md").read_text()
    assert card.startswith("---\nlibrary_name: tmi-clnet\n")
    front = card.split("---\n")[1]
    assert "- research-use-only\n" in front
    assert "- synthetic-data\n" in front
    for text in ("not a medical device", "**Synthetic.**", "## Limits", "## Parity with the validated model",
                 "| onnx | ", "| openvino | ", "| torchscript | ", "- cases: 6, in 2 folds"):  # fmt: skip
        assert text in card, text
    assert "P000" not in card


def test_small_counts_are_suppressed_together_with_what_they_could_be_computed_from(manifest):
    def card(counts: dict[str, int], **cohort: object) -> str:
        run = manifest.run | {
            "cohort": {"cases": sum(counts.values())} | cohort,
            "class_counts": releasable_counts(counts),
        }
        return model_card(replace(manifest, run=run))

    told = card({"good": 30, "bad": 12}, refused=7)
    assert "- cases: 42, in 2 folds" in told
    assert "- by class: bad 12, good 30" in told
    assert "left out: 7" in told
    hidden = card({"good": 30, "bad": 4}, refused=2)
    assert "bad 4" not in hidden
    assert "good 30" not in hidden
    assert "not told, a class has fewer than 5 cases" in hidden
    assert "left out: fewer than 5" in hidden


def test_the_metrics_are_the_runs_mean_and_deviation(manifest):
    figures = {
        "roc_auc": {"mean": 0.7314, "std": 0.0521, "folds": 5},
        "recall": {"mean": None, "std": None, "folds": 0},
    }
    summary = {"over_folds": figures, "notes": ["These figures are optimistic."]}
    card = model_card(replace(manifest, run=manifest.run | {"summary": summary}))
    assert "| ROC AUC | 0.731 ± 0.052 | 5 |" in card
    assert "| Recall | n/a | 0 |" in card
    assert "> These figures are optimistic." in card


def test_the_classes_are_counted_from_the_held_out_labels(nano_run):
    assert class_counts(RunFolder.open(nano_run)) == {"good": 4, "bad": 2}


def test_a_small_class_is_not_in_the_manifest_either(manifest):
    assert manifest.run["class_counts"] == {}


def test_the_evidence_holds_what_each_engine_answered(nano_bundle, manifest):
    reference = Outputs.from_tensors(load_file(nano_bundle / "golden.safetensors"))
    for engine in ("onnx", "openvino", "torchscript"):
        answers = Outputs.from_tensors(load_file(nano_bundle / "evidence" / f"{engine}.safetensors"))
        record = next(r for r in manifest.parity if r.engine == engine and r.gate == "logits")
        assert record.measured == relative_error(answers.logits_BFK, reference.logits_BFK)
        assert f"evidence/{engine}.safetensors" in manifest.files


def test_every_engine_states_its_error_as_a_multiple_of_float32s_own(manifest):
    for engine in ("onnx", "openvino", "torchscript"):
        records = [r for r in manifest.parity if r.engine == engine and r.gate == "float64"]
        assert {r.graph for r in records} == {"ct-0", "ct-1", "text-0", "text-1", "pipeline"}
        assert all(r.multiple is not None and 0 < r.multiple < 20 for r in records)
        assert "times eager float32's own error" in records[0].detail


def test_refused_cases_of_the_cohort_are_counted_and_not_named(nano_config, tmp_path):
    run = write_random_run(tmp_path / "run", nano_config)
    state = json.loads((run / "run.json").read_text())
    state["cohort"]["refused"] = ["PATIENT-7", "PATIENT-8"]
    (run / "run.json").write_text(json.dumps(state))
    bundle = export_run(run, tmp_path / "bundle", artefacts=("torchscript",), weights=False)
    assert bundle.manifest.run["cohort"]["refused"] == 2
    for path in bundle.folder.rglob("*"):
        assert not path.is_file() or b"PATIENT-7" not in path.read_bytes(), path.name


def test_real_cases_are_judged_and_leave_hashes_and_outputs_alone(nano_run, tmp_path):
    cases = [write_case(tmp_path / "cases" / f"Smith-{n}", seed=n) for n in range(2)]
    words = [word for case in cases for word in ("--cases", case)]
    outcome = tmi("export", nano_run, "--engine", "torchscript", "--out", tmp_path / "bundle", "--no-weights", *words)
    assert outcome.code == 0, outcome.err
    bundle = open_bundle(tmp_path / "bundle")
    gates = {r.gate: r for r in bundle.manifest.parity if r.gate.startswith("real-")}
    assert set(gates) == {"real-finite", "real-features", "real-logits", "real-probabilities", "real-decisions",
                          "real-fold-order"}  # fmt: skip
    assert gates["real-logits"].detail.startswith("worst of 2 real cases: ")
    evidence = json.loads((bundle.folder / "evidence" / "real-cases.json").read_text())["cases"]
    assert [set(row) for row in evidence] == [{"inputs", "eager", "engines"}] * 2
    assert all(len(digest) == 64 for row in evidence for digest in row["inputs"].values())
    assert set(evidence[0]["engines"]) == {"torchscript"}
    for path in bundle.folder.rglob("*"):
        assert not path.is_file() or b"Smith" not in path.read_bytes(), path.name


def test_a_real_case_that_no_prediction_would_take_ends_the_export_with_3(nano_run, tmp_path):
    (tmp_path / "empty").mkdir()
    outcome = tmi("export", nano_run, "--engine", "torchscript", "--out", tmp_path / "b", "--cases", tmp_path / "empty")
    assert outcome.code == 3
    assert "case empty: clinical.json is missing" in outcome.err
    assert not (tmp_path / "b").exists()
