"""Documents of a bundle: model card, software bill of materials, evidence, real cases."""

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
from tmi.runtime.bundle.manifest_records import CohortRecord, MetricSummary, RunSummary
from tmi.runtime.bundle.reader import open_bundle
from tmi.runtime.verification.outputs import Outputs
from tmi.runtime.verification.parity import relative_error
from tmi.toolkit.run_folder import RunFolder


@pytest.fixture(scope="module")
def manifest(nano_bundle: Path) -> Manifest:
    return open_bundle(nano_bundle).manifest


def test_sbom_is_valid_cyclonedx_with_installed_versions(nano_bundle, manifest):
    """The SBOM validates against CycloneDX 1.6 and lists the installed versions, without test packages."""
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
    assert "pytest" not in versions  # test dependencies are not part of a bundle


def test_sbom_is_deterministic(manifest):
    """The same bundle and packages give the same SBOM."""
    assert sbom(manifest) == sbom(manifest)


def test_model_card_has_all_sections(nano_bundle):
    """The model card has front matter, disclaimer, cohort, parity and limits, and no case id."""
    card = (nano_bundle / "MODEL_CARD.md").read_text()
    assert card.startswith("---\nlibrary_name: tmi-clnet\n")
    front = card.split("---\n")[1]
    assert "- research-use-only\n" in front
    assert "- synthetic-data\n" in front
    for text in ("not a medical device", "**Synthetic.**", "## Limits", "## Parity with the validated model",
                 "| onnx | ", "| openvino | ", "| torchscript | ", "- cases: 6, in 2 folds"):  # fmt: skip
        assert text in card, text
    assert "P000" not in card


def test_small_class_counts_are_suppressed(manifest):
    """Counts below five are suppressed, and with a small class count all class counts are."""

    def card(counts: dict[str, int], rejected: int) -> str:
        cohort = CohortRecord(cases=sum(counts.values()), rejected=rejected)
        run = replace(manifest.run, cohort=cohort, class_counts=releasable_counts(counts))
        return model_card(replace(manifest, run=run))

    large = card({"good": 30, "bad": 12}, rejected=7)
    assert "- cases: 42, in 2 folds" in large
    assert "- by class: bad 12, good 30" in large
    assert "rejected by the checks and excluded: 7" in large
    small = card({"good": 30, "bad": 4}, rejected=2)
    assert "bad 4" not in small
    assert "good 30" not in small
    assert "not reported, a class has fewer than 5 cases" in small
    assert "rejected by the checks and excluded: fewer than 5" in small


def test_model_card_reports_mean_and_deviation(manifest):
    """The card prints the mean and standard deviation of the run's metrics over the folds."""
    metrics = {
        "roc_auc": MetricSummary(mean=0.7314, std=0.0521, folds=5),
        "recall": MetricSummary(folds=0),
    }
    summary = RunSummary(over_folds=metrics, notes=("These metrics are optimistic.",))
    card = model_card(replace(manifest, run=replace(manifest.run, summary=summary)))
    assert "| ROC AUC | 0.731 ± 0.052 | 5 |" in card
    assert "| Recall | n/a | 0 |" in card
    assert "> These metrics are optimistic." in card


def test_classes_are_counted_from_held_out_labels(nano_run):
    """Class counts come from the labels of the held-out cases."""
    assert class_counts(RunFolder.open(nano_run)) == {"good": 4, "bad": 2}


def test_manifest_suppresses_small_classes(manifest):
    """The manifest has no class counts if a class is small."""
    assert manifest.run.class_counts == {}


def test_evidence_holds_engine_outputs(nano_bundle, manifest):
    """The evidence file of an engine holds the outputs whose error its record states."""
    reference = Outputs.from_tensors(load_file(nano_bundle / "golden.safetensors"))
    for engine in ("onnx", "openvino", "torchscript"):
        outputs = Outputs.from_tensors(load_file(nano_bundle / "evidence" / f"{engine}.safetensors"))
        record = next(r for r in manifest.parity if r.engine == engine and r.check == "logits")
        assert record.measured == relative_error(outputs.logits_BFK, reference.logits_BFK)
        assert f"evidence/{engine}.safetensors" in manifest.files


def test_engine_error_is_stated_as_float32_multiple(manifest):
    """Each engine's float64 record states the error as a multiple of eager float32's own."""
    for engine in ("onnx", "openvino", "torchscript"):
        records = [r for r in manifest.parity if r.engine == engine and r.check == "float64"]
        assert {r.graph for r in records} == {"ct-0", "ct-1", "text-0", "text-1", "pipeline"}
        assert all(r.multiple is not None and 0 < r.multiple < 20 for r in records)
        assert "times eager float32's own error" in records[0].detail


def test_rejected_cases_are_counted_not_named(nano_config, tmp_path):
    """A bundle contains the number of the cohort's rejected cases, not their ids."""
    run = write_random_run(tmp_path / "run", nano_config)
    state = json.loads((run / "run.json").read_text())
    state["cohort"]["refused"] = ["PATIENT-7", "PATIENT-8"]
    (run / "run.json").write_text(json.dumps(state))
    bundle = export_run(run, tmp_path / "bundle", artefacts=("torchscript",), weights=False)
    assert bundle.manifest.run.cohort.rejected == 2
    for path in bundle.folder.rglob("*"):
        assert not path.is_file() or b"PATIENT-7" not in path.read_bytes(), path.name


def test_real_cases_leave_only_hashes_and_outputs(nano_run, tmp_path):
    """Engines are validated on real cases, of which the bundle keeps only hashes and outputs."""
    cases = [write_case(tmp_path / "cases" / f"Smith-{n}", seed=n) for n in range(2)]
    options = [word for case in cases for word in ("--cases", case)]
    outcome = tmi("export", nano_run, "--engine", "torchscript", "--out", tmp_path / "bundle", "--no-weights", *options)
    assert outcome.code == 0, outcome.err
    bundle = open_bundle(tmp_path / "bundle")
    checks = {r.check: r for r in bundle.manifest.parity if r.check.startswith("real-")}
    assert set(checks) == {"real-finite", "real-features", "real-logits", "real-probabilities", "real-decisions",
                          "real-fold-order"}  # fmt: skip
    assert checks["real-logits"].detail.startswith("worst of 2 real cases: ")
    evidence = json.loads((bundle.folder / "evidence" / "real-cases.json").read_text())["cases"]
    assert [set(row) for row in evidence] == [{"inputs", "eager", "engines"}] * 2
    assert all(len(digest) == 64 for row in evidence for digest in row["inputs"].values())
    assert set(evidence[0]["engines"]) == {"torchscript"}
    for path in bundle.folder.rglob("*"):
        assert not path.is_file() or b"Smith" not in path.read_bytes(), path.name


def test_unusable_real_case_exits_with_3(nano_run, tmp_path):
    """A real case that cannot be used for prediction ends the export with exit code 3."""
    (tmp_path / "empty").mkdir()
    outcome = tmi("export", nano_run, "--engine", "torchscript", "--out", tmp_path / "b", "--cases", tmp_path / "empty")
    assert outcome.code == 3
    assert "case empty: clinical.json is missing" in outcome.err
    assert not (tmp_path / "b").exists()
