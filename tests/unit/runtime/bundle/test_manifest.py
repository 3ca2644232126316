"""The manifest: one JSON form, parsed strictly."""

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


def test_manifest_survives_a_json_round_trip():
    """Serialising a manifest and parsing it gives an equal manifest."""
    manifest = replace(small_manifest(), files={"a": FileSpec(sha256="00", bytes=2)}, synthetic=True, threshold=0.4)
    assert manifest_from_json(json.loads(canonical_json(manifest_to_json(manifest)))) == manifest


def test_parsed_config_is_the_runs_config():
    """`parsed_config` returns the run's config, typed."""
    assert small_manifest().parsed_config() == tiny()


@pytest.mark.parametrize("schema", ["tmi-bundle/0", "tmi-run/2", "tmi-bundle/x", None, 1])
def test_unknown_schema_is_rejected(schema):
    """A manifest of an older or unknown schema is rejected with both schema ids."""
    with pytest.raises(DamagedError, match=r"manifest has schema .*, this version reads 'tmi-bundle/2'") as error:
        manifest_from_json(data() | {"schema": schema})
    assert "use the tmi version that made the bundle" in error.value.fix


def test_newer_schema_names_the_version_to_install():
    """A manifest of a newer schema is rejected with the version that can read it."""
    newer = data() | {"schema": "tmi-bundle/3", "versions": {"tmi-clnet": "3.1.4"}, "unheard_of": True}
    with pytest.raises(
        DamagedError, match=r"a newer tmi \(3\.1\.4\) made it: .* this version reads 'tmi-bundle/2'"
    ) as error:
        manifest_from_json(newer)
    assert (
        error.value.fix
        == "install the version that made it, from its wheel: pip install 'tmi_clnet-3.1.4-py3-none-any.whl'"
    )


def test_previous_schema_uses_all_modalities():
    """A manifest of the previous schema is read as one that uses all modalities."""
    previous = {name: value for name, value in data().items() if name != "modalities"} | {"schema": "tmi-bundle/1"}
    assert manifest_from_json(previous) == manifest_from_json(data())
    assert manifest_from_json(previous).modalities == MODALITIES


def test_previous_schema_with_fewer_modalities_is_damaged():
    """A manifest of the previous schema whose network uses fewer modalities is rejected."""
    previous = data() | {"schema": "tmi-bundle/1"}
    del previous["modalities"]
    previous["config"]["system"]["name"] = "vit"
    with pytest.raises(DamagedError, match="lists the modalities clinical, radiomics, image, its config image"):
        manifest_from_json(previous).parsed_config()


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
    odd = replace(small_manifest(), config=to_json(override(tiny(), ['network.modalities=["image"]'])))
    with pytest.raises(DamagedError, match="lists the modalities clinical, radiomics, image, its config image"):
        odd.parsed_config()


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
    odd = replace(small_manifest(), config=small_manifest().config | {"colour": 1})
    with pytest.raises(DamagedError, match=r"bundle: manifest\.config: unknown key 'colour'"):
        odd.parsed_config()


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
