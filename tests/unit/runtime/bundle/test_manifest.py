"""The manifest: one JSON form, parsed strictly."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import MISSING, FrozenInstanceError, fields, is_dataclass, replace
from typing import Any, get_type_hints

import jsonschema
import pytest

from factories.paths import ROOT
from factories.planted_faults import rewrite_manifest
from factories.small_bundle import small_manifest
from tmi.runtime.bundle import check_result, manifest_records, tensorrt_records
from tmi.runtime.bundle import manifest as manifest_module
from tmi.runtime.bundle.manifest import manifest_from_json, manifest_schema, manifest_to_json, part_digests
from tmi.runtime.bundle.manifest_records import CohortRecord, FileSpec, Hardware
from tmi.runtime.bundle.manifest_schema import schema_of_manifest
from tmi.runtime.bundle.reader import inspect_bundle
from tmi.runtime.bundle.tensorrt_records import GraphSource
from tmi.toolkit.config.overrides import override
from tmi.toolkit.config.presets import tiny
from tmi.toolkit.config.schema import MODALITIES
from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.storage.hashing import canonical_json, sha256_json
from tmi.toolkit.storage.serialization import from_json

PUBLISHED = ROOT / "tests" / "unit" / "runtime" / "bundle" / "data" / "tmi-bundle-2"
TYPES = [
    value
    for module in (check_result, manifest_records, tensorrt_records, manifest_module)
    for value in vars(module).values()
    if isinstance(value, type) and is_dataclass(value) and value.__module__ == module.__name__ and fields(value)
]
"""Every dataclass of the manifest, without those of the config."""


def data() -> dict[str, Any]:
    filled = replace(small_manifest(), files={"graphs/ct-0.onnx": FileSpec(sha256="00", bytes=2)})
    value: dict[str, Any] = json.loads(canonical_json(manifest_to_json(filled)))
    return value


def test_manifest_survives_a_json_round_trip():
    """Serialising a manifest and parsing it gives an equal manifest."""
    manifest = replace(small_manifest(), files={"a": FileSpec(sha256="00", bytes=2)}, synthetic=True, threshold=0.4)
    assert manifest_from_json(json.loads(canonical_json(manifest_to_json(manifest)))) == manifest


@pytest.mark.parametrize("schema", ["tmi-bundle/0", "tmi-run/2", "tmi-bundle/x", None, 1])
def test_unknown_schema_is_rejected(schema):
    """A manifest of an older or unknown schema is rejected with both schema ids."""
    with pytest.raises(DamagedError, match=r"manifest has schema .*, this version reads 'tmi-bundle/3'") as error:
        manifest_from_json(data() | {"schema": schema})
    assert "use the tmi version that made the bundle" in error.value.fix


def test_newer_schema_names_the_version_to_install():
    """A manifest of a newer schema is rejected with the version that can read it."""
    newer = data() | {"schema": "tmi-bundle/4", "versions": {"tmi-clnet": "3.1.4"}, "unheard_of": True}
    with pytest.raises(
        DamagedError, match=r"a newer tmi \(3\.1\.4\) made it: .* this version reads 'tmi-bundle/3'"
    ) as error:
        manifest_from_json(newer)
    assert (
        error.value.fix
        == "install the version that made it, from its wheel: pip install 'tmi_clnet-3.1.4-py3-none-any.whl'"
    )


def published(**changes: Any) -> dict[str, Any]:
    """The manifest of the published bundle, of schema `tmi-bundle/2`; `changes` replace entries."""
    document: dict[str, Any] = json.loads((PUBLISHED / "bundle" / "manifest.json").read_text())
    return document | changes


def test_first_schema_uses_all_modalities():
    """A manifest of `tmi-bundle/1` is read as one that uses all modalities."""
    first = published(schema="tmi-bundle/1")
    del first["modalities"]
    assert manifest_from_json(first) == manifest_from_json(published())
    assert manifest_from_json(first).modalities == MODALITIES


def test_first_schema_with_fewer_modalities_is_damaged():
    """A manifest of `tmi-bundle/1` whose network uses fewer modalities is rejected."""
    first = published(schema="tmi-bundle/1")
    del first["modalities"]
    first["config"]["system"]["name"] = "vit"
    with pytest.raises(DamagedError, match="lists the modalities clinical, radiomics, image, its config image"):
        manifest_from_json(first)


def test_free_objects_of_earlier_schema_are_typed():
    """Entries of `extra`, `run`, `golden` and `parity` of `tmi-bundle/2` are read under their present names."""
    document = published()
    plan = {
        "builder": "tensorrt 11.0.0", "features": {"hardware compatibility": "ampere-plus", "weights": "strip"},
        "profiles": [{"ct": [[1, 1], [2, 1], [4, 1]]}], "plan": {"sha256": "00", "bytes": 2}, "built_on": "sm80",
        "from": {"file": "ct-0.onnx", "sha256": "00"}, "layers_in_half": 3, "layers_in_float": None, "target": None,
    }  # fmt: skip
    document["extra"] |= {
        "engines_refused": {"openvino-bf16": "it differs"},
        "note": "an entry that no version reads",
        "tensorrt": {
            "precision": {"asked": "fp16", "graphs": {"ct-0": {"precision": "float16", "search": []}}},
            "plans": {"trt": {"options": {"target": None}, "graphs": {"ct-0": plan}}},
            "judged_on": {"trt": {"gpu": "A100", "compute_capability": "sm80", "driver_cuda": "13.0"}},
        },
    }
    document["run"]["cohort"]["refused"] = 2
    manifest = manifest_from_json(document)
    assert manifest.engines_not_validated == document["extra"]["engines_not_judged"]
    assert manifest.engines_rejected == {"openvino-bf16": "it differs"}
    assert manifest.hardware == Hardware(machine="x86_64", cpu="an x86-64 CPU", system="Linux")
    assert manifest.run.cohort == CohortRecord(
        cases=3, synthetic=True, rejected=2, fingerprint=document["run"]["cohort"]["fingerprint"]
    )
    assert [r.check for r in manifest.parity] == [r["gate"] for r in document["parity"]]
    assert manifest.tensorrt is not None
    assert manifest.tensorrt.validated_on["trt"].gpu == "A100"
    assert manifest.tensorrt.precision is not None
    assert manifest.tensorrt.precision.requested == "fp16"
    read = manifest.tensorrt.plans["trt"].graphs["ct-0"]
    assert (read.features.hardware_compatibility, read.features.weights) == ("ampere-plus", "strip")
    assert (read.source, read.profiles[0]["ct"][2]) == (GraphSource(file="ct-0.onnx", sha256="00"), (4, 1))
    assert manifest_from_json(json.loads(canonical_json(manifest_to_json(manifest)))) == manifest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": 1}, "manifest: unknown key 'colour'"),
        ({"hardware": None}, "manifest: unknown key 'hardware' in schema 'tmi-bundle/2'"),
        ({"extra": []}, "manifest.extra is not an object"),
        ({"extra": {"temperatures": ["warm"]}}, "manifest.temperatures: 'warm' is not float"),
        ({"run": None}, "manifest.run: None is not RunRecord"),
        ({"golden": {}}, "manifest.golden: missing key 'seed'"),
        ({"parity": {}}, "manifest.parity: {} is not"),
    ],
)
def test_malformed_manifest_of_earlier_schema_is_damaged(changes, message):
    """A manifest of `tmi-bundle/2` is parsed as strictly as one of this schema, apart from its free objects."""
    with pytest.raises(DamagedError) as error:
        manifest_from_json(published(**changes))
    assert message in str(error.value)


def test_digests_of_parts_are_those_of_the_file():
    """The digests that the golden case holds are of the entries in the file, not of what is read from them."""
    document = published()
    digests = part_digests(document)
    assert digests.config == sha256_json(document["config"])
    assert digests != part_digests(manifest_to_json(manifest_from_json(document)))


@pytest.mark.parametrize(
    ("modalities", "fold", "message"),
    [
        (["radiomics", "image"], {}, "the network does not use clinical, but fold 0 has text-0"),
        (["clinical", "radiomics", "image"], {"ct": None}, "the network uses image, but fold 0 has nothing for it"),
        (
            ["clinical", "image"],
            {"text": "text-0"},
            "does not use radiomics, but fold 0 has scalers/fold0.json",
        ),
        (["clinical", "radiomics", "sound"], {}, "'sound' is not 'clinical' or 'radiomics' or 'image'"),
    ],
)
def test_folds_match_the_active_modalities(modalities, fold, message):
    """Every fold has the graphs and files of the active modalities and of no other."""
    value = data() | {"modalities": modalities}
    value["folds"][0] |= fold
    with pytest.raises(DamagedError) as error:
        manifest_from_json(value)
    assert message in str(error.value)


def test_modalities_must_match_the_config():
    """The manifest's modalities must be those of its config."""
    odd = replace(small_manifest(), config=override(tiny(), ['network.modalities=["image"]']))
    with pytest.raises(DamagedError, match="lists the modalities clinical, radiomics, image, its config image"):
        manifest_from_json(manifest_to_json(odd))


@pytest.mark.parametrize("value", [[], "x", None])
def test_non_object_is_rejected(value):
    """A JSON value that is not an object is rejected."""
    with pytest.raises(DamagedError, match="manifest has schema None"):
        manifest_from_json(value)


def without(name: str) -> dict[str, Any]:
    value = data()
    del value[name]
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (data() | {"colour": 1}, "manifest: unknown key 'colour'"),
        (without("folds"), "manifest: missing key 'folds'"),
        (data() | {"threshold": "half"}, "manifest.threshold: 'half' is not float"),
        (data() | {"threshold": float("nan")}, "manifest.threshold: nan is not float"),
        (data() | {"synthetic": 1}, "manifest.synthetic: 1 is not bool"),
        (data() | {"files": {"a": {"sha256": "00"}}}, "manifest.files.a"),
        (data() | {"files": {"a": {"sha256": "00", "bytes": 1, "mode": 7}}}, "unknown key 'mode'"),
        (data() | {"graphs": [{"name": "ct-0"}]}, "manifest.graphs"),
        (data() | {"graphs": [data()["graphs"][0] | {"role": "audio"}]}, "'audio' is not 'ct' or 'text' or 'fusion'"),
    ],
)
def test_malformed_manifest_is_damaged(value, message):
    """Unknown keys, missing keys and wrong types are rejected with their position."""
    with pytest.raises(DamagedError) as error:
        manifest_from_json(value)
    assert str(error.value).startswith("bundle: ")
    assert message in str(error.value)


def test_config_of_another_version_is_damaged():
    """An invalid config inside a manifest is a damaged bundle, not a usage error."""
    for change, message in (({"colour": 1}, r"manifest\.config: unknown key 'colour'"), ({"ct": {}}, "shape_DHW")):
        with pytest.raises(DamagedError, match=rf"bundle: .*{message}") as error:
            manifest_from_json(data() | {"config": data()["config"] | change})
        assert "use the tmi version that made the bundle" in error.value.fix


def fields_of(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Paths of all entries of a JSON value, of the first item only of a list."""
    entries = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, entry in entries:
        yield (*path, key)
        yield from fields_of(entry, (*path, key))


def test_wrong_type_of_any_entry_is_named():
    """A value of no JSON type that the manifest has is rejected in every place, with the name of the entry."""
    valid = json.dumps(manifest_to_json(manifest_from_json(published())))
    paths = [path for path in fields_of(json.loads(valid)) if path[0] != "schema"]
    assert len(paths) > 200
    for path in paths:
        document = json.loads(valid)
        owner = document
        for key in path[:-1]:
            owner = owner[key]
        owner[path[-1]] = Unknown()
        with pytest.raises(DamagedError) as error:
            manifest_from_json(document)
        named = ".".join(("manifest", *(key for key in path if isinstance(key, str))))
        assert f"{named}: " in error.value.what, path


class Unknown:
    """A value that is no JSON value."""


@pytest.mark.parametrize("cls", TYPES)
def test_missing_and_additional_fields_are_rejected(cls):
    """Every class of the manifest rejects an unknown key, and a missing one that has no default."""
    with pytest.raises(UsageError, match="unknown key 'colour'"):
        from_json(cls, {"colour": 1}, where="manifest")
    required = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
    if required:
        with pytest.raises(UsageError, match=f"missing key '{required[0]}'"):
            from_json(cls, {}, where="manifest")


@pytest.mark.parametrize("cls", TYPES)
def test_no_field_is_untyped(cls):
    """No field of the manifest, at any depth, is `Any` or a mapping that can be changed."""
    for name, hint in get_type_hints(cls).items():
        text = str(hint)
        assert "Any" not in text, name
        assert "dict[" not in text, name
        assert "list[" not in text, name


def test_manifest_cannot_be_changed():
    """No entry of a manifest can be set, added or removed, and what it was made from can be changed without it."""
    versions = {"tmi": "0.1.0"}
    manifest: Any = replace(small_manifest(), versions=versions)
    versions["tmi"] = "9"
    assert manifest.versions["tmi"] == "0.1.0"
    with pytest.raises(FrozenInstanceError):
        manifest.threshold = 0.9
    with pytest.raises(FrozenInstanceError):
        manifest.golden.seed = 1
    for mapping in (manifest.versions, manifest.files, manifest.graphs[0].artefacts, manifest.golden.vocabularies):
        with pytest.raises(TypeError):
            mapping["onnx"] = "other"
        assert not hasattr(mapping, "clear")
    with pytest.raises((AttributeError, TypeError)):
        manifest.extra = {}


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copy_in_another_process_is_equal_and_frozen(copy_of):
    """A manifest can be sent to a worker process; it is equal there, and cannot be changed either."""
    manifest = manifest_from_json(published())
    again = copy_of(manifest)
    assert again == manifest
    with pytest.raises(TypeError):
        again.versions["numpy"] = "0"


def test_additions_and_run_of_earlier_schema_are_read_leniently():
    """Unknown entries of an addition are left out, and a run without a name has the preset's."""
    machine = {"machine": "x86_64", "cpu": "a", "system": "b"}
    addition = {"artefacts": ["onnx"], "created": "2026-01-01T00:00:00+00:00", "versions": {}, "hardware": machine,
                "note": "by hand"}  # fmt: skip
    document = published()
    document["extra"]["additions"] = [addition]
    document["run"]["name"] = None
    manifest = manifest_from_json(document)
    assert [a.artefacts for a in manifest.additions] == [("onnx",)]
    assert manifest.run.name == manifest.preset


def test_graph_by_name():
    """`graph` returns the graph with a name; an unknown name is rejected."""
    assert small_manifest().graph("text-0").tokenizer == "tokenizers/text-0.json"
    with pytest.raises(DamagedError, match="the manifest has no graph 'ct-7'"):
        small_manifest().graph("ct-7")


def test_referenced_files_are_complete():
    """`referenced_files` lists the files of graphs, folds and the clinical schema."""
    assert small_manifest().referenced_files() == (
        "clinical_schema.json", "graphs/ct-0.onnx", "graphs/fusion.onnx", "graphs/text-0.onnx", "scalers/fold0.json",
        "tokenizers/text-0.json",
    )  # fmt: skip


def test_published_schema_matches_the_dataclasses():
    """The schema file is the one generated from the dataclasses."""
    assert manifest_schema() == json.loads(json.dumps(schema_of_manifest())), (
        "regenerate it: python -m tmi.runtime.bundle.manifest_schema"
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"threshold": 0.5',
            '"threshold": NaN',
            "it contains a number that is not finite",
        ),
        (
            '"threshold": 0.5',
            '"threshold": 1e400',
            "it contains a number that is not finite",
        ),
        (
            '"positive": 1',
            f'"positive": {"9" * 50}',
            "it contains an integer of more than 40 digits",
        ),
        ('"positive": 1', f'"positive": {"9" * 30}', "class 999999999999999999999999999999 is positive"),
        ('"positive": 1', '"positive": 1, "positive": 0', "cannot be read: the key 'positive' is duplicated"),
        ('"positive": 1', '"positive": true', "manifest.positive: True is not int"),
        ('"positive": 1', '"positive": 1.0', "manifest.positive: 1.0 is not int"),
    ],
)
@pytest.mark.parametrize("schema", ["tmi-bundle/2", "tmi-bundle/3"])
def test_malformed_file_is_damaged(tmp_path, old, new, message, schema):
    """Numbers that are none, a key that occurs twice and wrong types are damage in a file of each schema."""
    folder = shutil.copytree(PUBLISHED / "bundle", tmp_path / "bundle")
    text = (folder / "manifest.json").read_text()
    if schema == "tmi-bundle/3":
        text = canonical_json(manifest_to_json(manifest_from_json(json.loads(text))))
    assert text.count(old) == 1
    text = text.replace(old, new)
    rewrite_manifest(folder, text)
    with pytest.raises(DamagedError, match=message):
        inspect_bundle(folder)


def test_upgraded_manifest_satisfies_the_published_schema():
    """A manifest of `tmi-bundle/2` in the present form is one of `tmi-bundle/3` for readers in other languages too."""
    document = json.loads(canonical_json(manifest_to_json(manifest_from_json(published()))))
    jsonschema.validate(document, manifest_schema())
    for path in (("config", "ct", "shape_DHW"), ("run", "cohort", "cases"), ("golden", "seed"), ("parity", 0, "check")):
        changed = json.loads(json.dumps(document))
        owner = changed
        for key in path[:-1]:
            owner = owner[key]
        owner[path[-1]] = "x" if path[-1] != "check" else 1
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(changed, manifest_schema())
