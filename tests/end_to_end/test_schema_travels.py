"""The clinical schema and text rendering of training: they are in the run and the bundle, and prediction uses them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import tmi.runtime.serving.pipeline as pipeline
from factories.cached_traces import use_cached_traces
from factories.cases import write_cohort
from factories.nano import NANO_OPTIONS
from factories.tmi_command import CommandResult, tmi
from tmi.runtime.bundle.reader import open_bundle, write_manifest
from tmi.toolkit.clinical.schema import SCHEMA_FILE, load_schema
from tmi.toolkit.run_folder import RunFolder
from tmi.toolkit.storage.hashing import sha256_file

MICRO = ("--preset", "tiny", "--folds", 2, "--epochs", 1, *NANO_OPTIONS)
SCHEMA = {
    "schema": "tmi-clinical-schema/1", "extends": "liver", "name": "pbc", "version": "3",
    "fields": [{"name": "copper", "label": "Urine copper", "section": "blood", "unit": "ug/day",
                "plausible": [0, 2000], "reference": {"all": [10, 60]}}],
    "without": ["ldl"],
}  # fmt: skip


def set_values(case: Path, **values: object) -> None:
    record = json.loads((case / "clinical.json").read_text())
    (case / "clinical.json").write_text(json.dumps(record | {"values": record["values"] | values}))


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("schema")
    write_cohort(folder / "cohort", cases=8, shape_xyz=(20, 20, 20))
    for number, case in enumerate(sorted(p for p in (folder / "cohort").iterdir() if p.is_dir())):
        set_values(case, copper=40 + 10 * number)
    (folder / "pbc.json").write_text(json.dumps(SCHEMA))
    return folder


@pytest.fixture(scope="module")
def trained(project) -> CommandResult:
    return tmi("train", *MICRO, "--schema", "pbc.json", "--out", "run", cwd=project)


@pytest.fixture(scope="module")
def bundle(project, trained, nano_bundle) -> Path:
    assert trained.code == 0, trained.err
    with pytest.MonkeyPatch.context() as patch:
        use_cached_traces(patch, nano_bundle)
        exported = tmi("export", "run", "--engine", "onnx", "--out", "bundle", cwd=project)
    assert exported.code == 0, exported.err
    return project / "bundle"


def test_extra_field_needs_the_schema(project):
    """`tmi check` rejects a field that the packaged schema does not have, and accepts it with the schema."""
    outcome = tmi("check", "cohort/C000", cwd=project)
    assert outcome.code == 3
    assert "the schema has no field 'copper'" in outcome.out
    assert tmi("check", "cohort/C000", "--schema", "pbc.json", cwd=project).code == 0


def test_project_file_sets_the_schema(project, tmp_path):
    """`tmi.toml` may name the schema; a missing file is wrong usage."""
    (tmp_path / "tmi.toml").write_text(f'schema = "{project / "pbc.json"}"\n')
    assert tmi("check", project / "cohort" / "C000", cwd=tmp_path).code == 0
    (tmp_path / "tmi.toml").write_text('schema = "absent.json"\n')
    outcome = tmi("check", project / "cohort" / "C000", cwd=tmp_path)
    assert (outcome.code, "absent.json cannot be read" in outcome.err) == (2, True)


def test_run_and_bundle_hold_the_schema(project, bundle):
    """The run and the bundle hold the resolved schema, and both record its digest."""
    schema = load_schema(project / "pbc.json")
    run, opened = RunFolder.open(project / "run").require_finished(), open_bundle(bundle)
    assert run.schema == schema
    assert run.state["files"][SCHEMA_FILE] == schema.digest == sha256_file(bundle / SCHEMA_FILE)
    assert opened.manifest.files[SCHEMA_FILE].sha256 == schema.digest
    clinical = opened.manifest.clinical
    assert (clinical.schema, clinical.rendering, clinical.rendering_version) == (SCHEMA_FILE, "compact", 1)


def test_bundle_predicts_with_its_own_schema(project, bundle, tmp_path, monkeypatch):
    """A bundle that was moved renders and checks records with the schema that it holds."""
    moved = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    texts: list[str] = []
    prepare_case = pipeline.prepare_case

    def recording(*arguments, **options):
        prepared = prepare_case(*arguments, **options)
        texts.append(prepared.text)
        return prepared

    monkeypatch.setattr(pipeline, "prepare_case", recording)
    cases = [Path(shutil.copytree(project / "cohort" / c, tmp_path / c)) for c in ("C000", "C001")]
    set_values(cases[1], ldl=2.5)  # a field that the packaged schema has and this one excludes
    outcome = tmi("predict", *cases, "--bundle", moved, "--engine", "onnx", "--json", cwd=tmp_path)
    assert outcome.code == 3, outcome.err
    first, second = outcome.document["results"]
    assert first["status"] == "predicted"
    assert (second["code"], "no field 'ldl'" in second["what"]) == ("clinical-unknown-field", True)
    assert "Urine copper 40" in texts[0]
    assert "LDL" not in texts[0]


def test_changed_schema_is_damage(bundle, project, tmp_path):
    """A schema that was changed after the export ends with the code of a damaged bundle."""
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    schema = json.loads((copy / SCHEMA_FILE).read_text())
    schema["fields"][0]["label"] = "Gender"
    (copy / SCHEMA_FILE).write_text(json.dumps(schema))
    outcome = tmi("predict", project / "cohort" / "C000", "--bundle", copy)
    assert outcome.code == 6
    assert f"{SCHEMA_FILE} was changed after the export" in outcome.err


@pytest.mark.parametrize(
    "change",
    [{"rendering_version": 2}, {"rendering": "prose"}, {"rendering": "flags"}],
    ids=["version", "unknown", "other"],
)
def test_bundle_with_other_text_rendering_is_rejected(bundle, project, tmp_path, change):
    """A bundle is rejected if this version of `tmi` renders its clinical text differently."""
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    manifest = open_bundle(copy).manifest
    write_manifest(copy, replace(manifest, clinical=replace(manifest.clinical, **change)))
    outcome = tmi("predict", project / "cohort" / "C000", "--bundle", copy, "--engine", "onnx")
    assert outcome.code == 6
    if "rendering_version" in change:
        assert "trained on clinical text 'compact' version 2; this tmi writes version 1" in outcome.err
    else:
        assert "its config and its clinical text disagree" in outcome.err


def test_bundle_with_another_schema_file_is_rejected(bundle, project, tmp_path):
    """A manifest that names another file as the clinical schema contradicts the golden case."""
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    manifest = open_bundle(copy).manifest
    write_manifest(copy, replace(manifest, clinical=replace(manifest.clinical, schema="tokenizers/text-0.json")))
    outcome = tmi("predict", project / "cohort" / "C000", "--bundle", copy, "--engine", "onnx")
    assert outcome.code == 4
    assert "does not match the validated model" in outcome.err
    assert not outcome.out


def test_export_compares_rendering_with_training(project, bundle, monkeypatch, tmp_path):
    """An export fails if the rendering changed since training, instead of recording the new version."""
    monkeypatch.setattr("tmi.toolkit.clinical.rendering.RENDERING_VERSIONS", {"compact": 2, "values": 2})
    outcome = tmi("export", project / "run", "--engine", "onnx", "--out", tmp_path / "again")
    assert outcome.code == 6
    assert "trained on clinical text 'compact' version 1; this tmi writes version 2" in outcome.err
    assert not (tmp_path / "again").exists()
    predicted = tmi("predict", project / "cohort" / "C000", "--bundle", bundle, "--engine", "onnx")
    assert predicted.code == 6


def test_resume_needs_same_schema_and_rendering(project, trained, tmp_path, monkeypatch):
    """A run resumes only with the schema and the text rendering that it was started with."""
    run = Path(shutil.copytree(project / "run", tmp_path / "run"))
    state = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(state | {"status": "running"}))
    resume = ("train", "cohort", *MICRO, "--out", run, "--resume")
    outcome = tmi(*resume, cwd=project)
    assert (outcome.code, "was started with a different clinical schema" in outcome.err) == (2, True)
    with monkeypatch.context() as patch:
        patch.setattr("tmi.toolkit.clinical.rendering.RENDERING_VERSIONS", {"compact": 2, "values": 2})
        outcome = tmi(*resume, "--schema", "pbc.json", cwd=project)
    assert (outcome.code, "version 1; this tmi writes version 2" in outcome.err) == (6, True)
    assert tmi(*resume, "--schema", "pbc.json", cwd=project).code == 0


def test_training_from_cache_gives_same_weights(project, trained, tmp_path, monkeypatch):
    """The second training takes all prepared cases from the cache; the weights are the same with and without it."""
    monkeypatch.setenv("TMI_CACHE", str(tmp_path / "cache"))
    messages = []
    for name, options in (("first", ()), ("second", ()), ("third", ("--no-cache",))):
        command = ("train", "cohort", *MICRO, "--schema", "pbc.json", "--out", tmp_path / name, *options)
        outcome = tmi(*command, cwd=project)
        assert outcome.code == 0, outcome.err
        messages += [line for line in outcome.err.splitlines() if line.startswith("cache of prepared cases")]
    assert [line.partition(" stored")[0] for line in messages] == [
        "cache of prepared cases: 0 found, 8",
        "cache of prepared cases: 8 found, 0",
    ]
    runs = [project / "run", *(tmp_path / name for name in ("first", "second", "third"))]
    assert len({(run / "fold0" / "model.safetensors").read_bytes() for run in runs}) == 1


def test_prediction_from_cache_gives_same_result(project, bundle, tmp_path, monkeypatch):
    """`--cache` stores prepared images and reuses them; the results are the same with and without it."""
    monkeypatch.setenv("TMI_CACHE", str(tmp_path / "cache"))
    command = ("predict", project / "cohort" / "C000", "--bundle", bundle, "--engine", "onnx", "--json")
    uncached, first, second = tmi(*command), tmi(*command, "--cache"), tmi(*command, "--cache")
    assert "cache of prepared cases" not in uncached.err
    assert "0 found, 1 stored" in first.err
    assert "1 found, 0 stored" in second.err
    results = [{**o.document["results"][0], "seconds": None, "overlapped": None} for o in (uncached, first, second)]
    assert results[0] == results[1] == results[2]
