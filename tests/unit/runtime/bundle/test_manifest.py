"""The manifest: one JSON form, read strictly."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from factories.small_bundle import small_manifest
from tmi.runtime.bundle.manifest import FileSpec, manifest_from_json, manifest_schema, manifest_to_json
from tmi.runtime.bundle.manifest_schema import schema_of_manifest
from tmi.toolkit.config.overrides import override
from tmi.toolkit.config.presets import tiny
from tmi.toolkit.config.schema import MODALITIES
from tmi.toolkit.errors import DamagedError
from tmi.toolkit.storage.hashing import canonical_json
from tmi.toolkit.storage.serialization import to_json


def data() -> dict[str, Any]:
    filled = replace(small_manifest(), files={"graphs/ct-0.onnx": FileSpec(sha256="00", bytes=2)})
    value: dict[str, Any] = json.loads(canonical_json(manifest_to_json(filled)))
    return value


def test_a_manifest_goes_through_json_and_back_without_a_change():
    manifest = replace(small_manifest(), files={"a": FileSpec(sha256="00", bytes=2)}, synthetic=True, threshold=0.4)
    assert manifest_from_json(json.loads(canonical_json(manifest_to_json(manifest)))) == manifest


def test_the_config_in_it_is_the_runs_config_typed():
    assert small_manifest().parsed_config() == tiny()


@pytest.mark.parametrize("schema", ["tmi-bundle/0", "tmi-run/2", "tmi-bundle/x", None, 1])
def test_another_schema_is_refused(schema):
    with pytest.raises(DamagedError, match=r"manifest has schema .*, this version reads 'tmi-bundle/2'") as error:
        manifest_from_json(data() | {"schema": schema})
    assert "use the tmi version that made the bundle" in error.value.fix


def test_a_newer_schema_is_refused_with_the_version_to_install():
    newer = data() | {"schema": "tmi-bundle/3", "versions": {"tmi-clnet": "3.1.4"}, "unheard_of": True}
    with pytest.raises(
        DamagedError, match=r"a newer tmi \(3\.1\.4\) made it: .* this version reads 'tmi-bundle/2'"
    ) as error:
        manifest_from_json(newer)
    assert error.value.fix == "install the version that made it: pip install 'tmi-clnet>=3.1.4'"


def test_a_manifest_of_the_schema_before_is_one_that_sees_everything():
    before = {name: value for name, value in data().items() if name != "modalities"} | {"schema": "tmi-bundle/1"}
    assert manifest_from_json(before) == manifest_from_json(data())
    assert manifest_from_json(before).modalities == MODALITIES


def test_a_manifest_of_the_schema_before_with_another_network_is_damaged():
    before = data() | {"schema": "tmi-bundle/1"}
    del before["modalities"]
    before["config"]["system"]["name"] = "vit"
    with pytest.raises(DamagedError, match="clinical, radiomics, image is seen, its config says image"):
        manifest_from_json(before).parsed_config()


@pytest.mark.parametrize(
    ("modalities", "fold", "told"),
    [
        (["radiomics", "image"], {}, "clinical is not seen, and fold 0 has text-0"),
        (["clinical", "radiomics", "image"], {"ct": None}, "image is seen, and fold 0 has nothing for it"),
        (["clinical", "image"], {"text": "text-0"}, "radiomics is not seen, and fold 0 has scalers/fold0.json"),
        (["clinical", "radiomics", "sound"], {}, "'sound' is not 'clinical' or 'radiomics' or 'image'"),
    ],
)
def test_a_fold_has_what_its_bundle_sees_and_nothing_else(modalities, fold, told):
    value = data() | {"modalities": modalities}
    value["folds"][0] |= fold
    with pytest.raises(DamagedError) as error:
        manifest_from_json(value)
    assert told in str(error.value)


def test_what_is_seen_must_be_what_the_config_says():
    odd = replace(small_manifest(), config=to_json(override(tiny(), ['network.modalities=["image"]'])))
    with pytest.raises(DamagedError, match="clinical, radiomics, image is seen, its config says image"):
        odd.parsed_config()


@pytest.mark.parametrize("value", [[], "x", None])
def test_what_is_no_object_is_refused(value):
    with pytest.raises(DamagedError, match="manifest has schema None"):
        manifest_from_json(value)


def without(name: str) -> dict[str, Any]:
    value = data()
    del value[name]
    return value


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (data() | {"colour": 1}, "manifest: unknown key 'colour'"),
        (without("folds"), "folds"),
        (data() | {"threshold": "half"}, "manifest.threshold: 'half' is not float"),
        (data() | {"threshold": float("nan")}, "manifest.threshold: nan is not float"),
        (data() | {"synthetic": 1}, "manifest.synthetic: 1 is not bool"),
        (data() | {"files": {"a": {"sha256": "00"}}}, "manifest.files.a"),
        (data() | {"files": {"a": {"sha256": "00", "bytes": 1, "mode": 7}}}, "unknown key 'mode'"),
        (data() | {"graphs": [{"name": "ct-0"}]}, "manifest.graphs"),
        (data() | {"graphs": [data()["graphs"][0] | {"role": "audio"}]}, "'audio' is not 'ct' or 'text' or 'fusion'"),
    ],
)
def test_a_manifest_that_is_not_to_the_letter_is_damaged(value, told):
    with pytest.raises(DamagedError) as error:
        manifest_from_json(value)
    assert str(error.value).startswith("bundle: ")
    assert told in str(error.value)


def test_a_config_of_another_version_is_damaged_and_no_wrong_usage():
    odd = replace(small_manifest(), config=small_manifest().config | {"colour": 1})
    with pytest.raises(DamagedError, match=r"bundle: manifest\.config: unknown key 'colour'"):
        odd.parsed_config()


def test_a_graph_is_found_by_name_and_a_missing_one_is_damage():
    assert small_manifest().graph("text-0").tokenizer == "tokenizers/text-0.json"
    with pytest.raises(DamagedError, match="manifest names no graph 'ct-7'"):
        small_manifest().graph("ct-7")


def test_it_knows_every_file_that_it_uses():
    assert small_manifest().referenced_files() == (
        "clinical_schema.json", "graphs/ct-0.onnx", "graphs/fusion.onnx", "graphs/text-0.onnx", "scalers/fold0.json",
        "tokenizers/text-0.json",
    )  # fmt: skip


def test_the_published_schema_is_what_the_dataclasses_say():
    assert manifest_schema() == json.loads(json.dumps(schema_of_manifest())), (
        "renew it: python -m tmi.runtime.bundle.manifest_schema"
    )
