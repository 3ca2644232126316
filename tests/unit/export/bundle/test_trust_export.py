"""Trust statistics travel from a run to its bundle, and every engine's distances are checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from factories.cached_traces import use_cached_traces
from factories.trust import HELD_OUT, run_with_trust, trust_of_parts
from tmi.export.bundle.writer import export_run
from tmi.runtime.bundle.manifest import manifest_to_json
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.registry import open_engine
from tmi.runtime.verification.golden_inputs import golden_from_manifest
from tmi.runtime.verification.parity import check_engine
from tmi.runtime.verification.verify import read_references


@pytest.fixture(scope="module")
def exported(nano_run: Path, nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A run with statistics, exported as ONNX."""
    folder = tmp_path_factory.mktemp("trust")
    with pytest.MonkeyPatch.context() as patch:
        use_cached_traces(patch, nano_bundle)
        patch.setattr("tmi.runtime.engines.graph_engine.available_cores", lambda: 1)
        return export_run(run_with_trust(nano_run, folder / "run"), folder / "bundle", artefacts=("onnx",))


def test_bundle_has_the_statistics_of_its_run(exported):
    """The files are the run's, the manifest has level and number of cases, and every check of an engine passed."""
    record = exported.manifest.trust
    assert (record.level, record.cases) == (0.05, 2 * HELD_OUT)
    for fold, name in zip(exported.manifest.folds, record.files, strict=True):
        source = exported.folder.parent / "run" / f"fold{fold.fold}" / "trust.safetensors"
        assert (exported.folder / name).read_bytes() == source.read_bytes()
    checks = [r for r in exported.manifest.parity if r.check == "trust"]
    assert {r.engine for r in checks} >= {"onnx", "openvino"}
    assert all(r.passed for r in checks)
    assert len([r for r in checks if r.engine == "onnx"]) == 4  # CT and text of two folds


def test_document_without_statistics_is_as_before(nano_bundle):
    """A manifest without statistics has no entry for them, so that an earlier version reads it."""
    from factories.planted_faults import manifest_at

    assert "trust" not in manifest_to_json(manifest_at(nano_bundle))


def test_engine_with_another_distance_fails(exported):
    """An engine whose features lie elsewhere in the training's distribution fails the check `trust`."""
    manifest = exported.manifest
    golden, reference = golden_from_manifest(manifest), read_references(exported).float32
    trust = [trust_of_parts(f.fold, {"image.encoder": reference.features[f.ct]}) for f in manifest.folds]
    with open_engine("onnx", exported, threads=1) as engine:
        original = engine.run

        def shifted(graph, inputs):
            outputs = original(graph, inputs)
            return {k: v * 1.05 for k, v in outputs.items()} if graph == "ct-0" else outputs

        engine.run = shifted
        records = check_engine(engine, manifest, golden, reference, artefact="onnx", trust=trust)
    failed = [r.graph for r in records if r.check == "trust" and not r.passed]
    assert failed == ["ct-0"]
