"""The clinical schema and the rendering that a model was trained with are those it predicts with, or it does not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import tmi.runtime.serving.case_loader as inputs_module
from factories.cases import write_cohort
from factories.nano import NANO_OPTIONS
from factories.tmi_command import CommandResult, tmi
from factories.traced_once import use_cached_traces
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


def with_value(case: Path, **values: object) -> None:
    record = json.loads((case / "clinical.json").read_text())
    (case / "clinical.json").write_text(json.dumps(record | {"values": record["values"] | values}))


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("schema")
    write_cohort(folder / "cohort", cases=8, shape_xyz=(20, 20, 20))
    for number, case in enumerate(sorted(p for p in (folder / "cohort").iterdir() if p.is_dir())):
        with_value(case, copper=40 + 10 * number)
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


def test_without_the_schema_the_extra_field_is_refused(project):
    outcome = tmi("check", "cohort/C000", cwd=project)
    assert outcome.code == 3
    assert "the schema has no field 'copper'" in outcome.out
    assert tmi("check", "cohort/C000", "--schema", "pbc.json", cwd=project).code == 0


def test_tmi_toml_may_name_the_schema(project, tmp_path):
    (tmp_path / "tmi.toml").write_text(f'schema = "{project / "pbc.json"}"\n')
    assert tmi("check", project / "cohort" / "C000", cwd=tmp_path).code == 0
    (tmp_path / "tmi.toml").write_text('schema = "absent.json"\n')
    outcome = tmi("check", project / "cohort" / "C000", cwd=tmp_path)
    assert (outcome.code, "absent.json cannot be read" in outcome.err) == (2, True)


def test_run_and_bundle_hold_the_resolved_schema_by_digest(project, bundle):
    schema = load_schema(project / "pbc.json")
    run, opened = RunFolder.open(project / "run").require_finished(), open_bundle(bundle)
    assert run.schema == schema
    assert run.state["files"][SCHEMA_FILE] == schema.digest == sha256_file(bundle / SCHEMA_FILE)
    assert opened.manifest.files[SCHEMA_FILE].sha256 == schema.digest
    clinical = opened.manifest.clinical
    assert (clinical.schema, clinical.rendering, clinical.rendering_version) == (SCHEMA_FILE, "values", 1)


def test_the_bundle_predicts_by_its_own_schema_wherever_it_is(project, bundle, tmp_path, monkeypatch):
    moved = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    texts: list[str] = []
    original = inputs_module.prepare_case

    def spying(*asked, **options):
        prepared = original(*asked, **options)
        texts.append(prepared.text)
        return prepared

    monkeypatch.setattr(inputs_module, "prepare_case", spying)
    cases = [Path(shutil.copytree(project / "cohort" / c, tmp_path / c)) for c in ("C000", "C001")]
    with_value(cases[1], ldl=2.5)  # which the liver's schema accepts
    outcome = tmi("predict", *cases, "--bundle", moved, "--engine", "onnx", "--json", cwd=tmp_path)
    assert outcome.code == 3, outcome.err
    first, second = outcome.document["results"]
    assert first["status"] == "predicted"
    assert (second["code"], "no field 'ldl'" in second["what"]) == ("clinical-unknown-field", True)
    assert "Urine copper: 40 ug/day." in texts[0]
    assert "LDL" not in texts[0]


def test_a_changed_schema_in_the_bundle_is_damage(bundle, project, tmp_path):
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    schema = json.loads((copy / SCHEMA_FILE).read_text())
    schema["fields"][0]["label"] = "Gender"
    (copy / SCHEMA_FILE).write_text(json.dumps(schema))
    outcome = tmi("predict", project / "cohort" / "C000", "--bundle", copy)
    assert outcome.code == 6
    assert f"{SCHEMA_FILE} was changed after the export" in outcome.err


@pytest.mark.parametrize(
    "change",
    [{"rendering_version": 2}, {"rendering": "prose"}, {"rendering": "flags"}, {"schema": "tokenizers/text-0.json"}],
    ids=lambda c: next(iter(c)),
)
def test_a_bundle_whose_text_this_version_would_write_otherwise_is_refused(bundle, project, tmp_path, change):
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    manifest = open_bundle(copy).manifest
    write_manifest(copy, replace(manifest, clinical=replace(manifest.clinical, **change)))
    outcome = tmi("predict", project / "cohort" / "C000", "--bundle", copy, "--engine", "onnx")
    assert outcome.code == 6
    if "rendering_version" in change:
        assert "trained on clinical text 'values' version 2; this tmi writes version 1" in outcome.err
    else:
        assert "its config and its clinical text disagree" in outcome.err


def test_an_export_tells_the_version_that_was_trained_with_and_not_its_own(project, bundle, monkeypatch, tmp_path):
    monkeypatch.setattr("tmi.toolkit.clinical.rendering.RENDERING_VERSIONS", {"values": 2, "flags": 2})
    outcome = tmi("export", project / "run", "--engine", "onnx", "--out", tmp_path / "again")
    assert outcome.code == 6
    assert "trained on clinical text 'values' version 1; this tmi writes version 2" in outcome.err
    assert not (tmp_path / "again").exists()
    predicted = tmi("predict", project / "cohort" / "C000", "--bundle", bundle, "--engine", "onnx")
    assert predicted.code == 6


def test_a_run_resumes_only_with_the_schema_and_the_rendering_it_was_started_with(
    project, trained, tmp_path, monkeypatch
):
    run = Path(shutil.copytree(project / "run", tmp_path / "run"))
    state = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(state | {"status": "running"}))
    resume = ("train", "cohort", *MICRO, "--out", run, "--resume")
    outcome = tmi(*resume, cwd=project)
    assert (outcome.code, "was started with a different clinical schema" in outcome.err) == (2, True)
    with monkeypatch.context() as patch:
        patch.setattr("tmi.toolkit.clinical.rendering.RENDERING_VERSIONS", {"values": 2, "flags": 2})
        outcome = tmi(*resume, "--schema", "pbc.json", cwd=project)
    assert (outcome.code, "version 1; this tmi writes version 2" in outcome.err) == (6, True)
    assert tmi(*resume, "--schema", "pbc.json", cwd=project).code == 0


def test_training_finds_what_an_earlier_one_prepared_and_gives_the_same_run(project, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("TMI_CACHE", str(tmp_path / "cache"))
    told = []
    for name, options in (("first", ()), ("second", ()), ("third", ("--no-cache",))):
        command = ("train", "cohort", *MICRO, "--schema", "pbc.json", "--out", tmp_path / name, *options)
        outcome = tmi(*command, cwd=project)
        assert outcome.code == 0, outcome.err
        told += [line for line in outcome.err.splitlines() if line.startswith("cache of prepared cases")]
    assert [line.partition(" stored")[0] for line in told] == [
        "cache of prepared cases: 0 found, 8",
        "cache of prepared cases: 8 found, 0",
    ]
    runs = [project / "run", *(tmp_path / name for name in ("first", "second", "third"))]
    assert len({(run / "fold0" / "model.safetensors").read_bytes() for run in runs}) == 1


def test_predicting_keeps_prepared_images_when_asked_to_and_answers_the_same(project, bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("TMI_CACHE", str(tmp_path / "cache"))
    command = ("predict", project / "cohort" / "C000", "--bundle", bundle, "--engine", "onnx", "--json")
    plain, first, second = tmi(*command), tmi(*command, "--cache"), tmi(*command, "--cache")
    assert "cache of prepared cases" not in plain.err
    assert "0 found, 1 stored" in first.err
    assert "1 found, 0 stored" in second.err
    answers = [{**o.document["results"][0], "seconds": None, "overlapped": None} for o in (plain, first, second)]
    assert answers[0] == answers[1] == answers[2]
