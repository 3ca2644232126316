"""A manifest that contradicts itself ends with exit code 6, before anything is sized or loaded by it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from factories.paths import ROOT
from factories.planted_faults import edit_manifest, reseal
from factories.tmi_command import tmi
from tmi.runtime.bundle.reader import inspect_bundle
from tmi.toolkit.errors import DamagedError

PUBLISHED = ROOT / "tests" / "unit" / "runtime" / "bundle" / "data" / "tmi-bundle-2"
Change = Callable[[dict[str, Any]], object]


def graph(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    return next(g for g in manifest["graphs"] if g["name"] == name)


def put(*keys: Any) -> Change:
    """Set the entry that the keys lead to; the last one is the value."""
    *path, last, value = keys

    def change(manifest: dict[str, Any]) -> None:
        entry: Any = manifest
        for key in path:
            entry = entry[key]
        entry[last] = value

    return change


def exchange_roles(manifest: dict[str, Any]) -> None:
    graph(manifest, "ct-0")["role"], graph(manifest, "text-0")["role"] = "text", "ct"


def exchange_graphs(manifest: dict[str, Any]) -> None:
    (fold,) = manifest["folds"]
    fold["ct"], fold["text"] = fold["text"], fold["ct"]


def same_file(manifest: dict[str, Any]) -> None:
    graph(manifest, "text-0")["artefacts"] = dict(graph(manifest, "ct-0")["artefacts"])


def listed_twice(manifest: dict[str, Any]) -> None:
    manifest["graphs"] = [graph(manifest, name) for name in ("ct-0", "ct-0", "fusion")]


def many_folds(manifest: dict[str, Any]) -> None:
    manifest["folds"] = [manifest["folds"][0] | {"fold": n} for n in range(5000)]


def sizes(**changes: Any) -> Change:
    """Change entries of `config.network`, each given as section__key."""

    def change(manifest: dict[str, Any]) -> None:
        for name, value in changes.items():
            section, _, key = name.partition("__")
            manifest["config"]["network"][section][key] = value

    return change


CONTRADICTIONS: dict[str, tuple[Change, str]] = {
    "golden count 10^9": (put("golden", "count", 10**9), "golden cases is not 2 to 64"),
    "golden count -1": (put("golden", "count", -1), "golden cases is not 2 to 64"),
    "golden count as text": (put("golden", "count", "9" * 400), r"manifest\.golden\.count: '999"),
    "golden count 1e300": (put("golden", "count", 1e300), r"manifest\.golden\.count: 1e\+300 is not int"),
    "golden seed of 400 digits": (put("golden", "seed", 10**400), "an integer of more than 40 digits"),
    "negative golden seed": (put("golden", "seed", -(10**30)), "is no seed"),
    "golden vocabulary 10^18": (put("golden", "vocabularies", "text-0", 10**18), "larger than the embedding table"),
    "golden vocabulary of no graph": (put("golden", "vocabularies", {"text-9": 96}), "not those of its text graphs"),
    "10^6 text layers": (sizes(text_encoder__layers=10**6), "layers has the impossible size 1000000"),
    "10^6 CT layers": (sizes(ct_encoder__layers=[10**6, 1, 1, 1]), "layers has the impossible size"),
    "-1 CT layers": (sizes(ct_encoder__layers=[-1, 1, 1, 1]), "layers has the impossible size -1"),
    "10^6 dense layers": (sizes(head__blocks=[10**6]), "blocks has the impossible size"),
    "10^4 dense blocks": (sizes(head__blocks=[1] * 10**4), "blocks has the impossible size"),
    "width 10^12": (sizes(radiomics_encoder__hidden=10**12), "hidden has the impossible size"),
    "no heads": (sizes(text_encoder__heads=0), "hidden_size=4"),
    "no IMA heads": (sizes(fusion__ima_heads=0), "width=4"),
    "volume of 10^15 voxels": (put("config", "ct", "shape_DHW", [10**5] * 3), "is too large"),
    "volume of other size": (put("config", "ct", "shape_DHW", [8, 16, 24]), "inputs of graph 'ct-0'"),
    "positive class 5": (put("positive", 5), "class 5 is positive"),
    "positive class -1": (put("positive", -1), "class -1 is positive"),
    "threshold 7": (put("threshold", 7.0), "is no probability"),
    "one class": (put("classes", ["bad"]), "names 1 classes"),
    "5000 folds": (many_folds, "has 5000 folds"),
    "no parity record": (put("parity", []), "no record of a parity check"),
    "failed parity record": (put("parity", 0, "passed", False), "failed, which no export accepts"),
    "no fold": (put("folds", []), "has 0 folds"),
    "fold listed twice": (lambda m: m["folds"].append(m["folds"][0]), "fold 0 is listed twice"),
    "graph listed twice": (listed_twice, "graph ct-0 is listed twice"),
    "one more graph": (lambda m: m["graphs"].append(m["graphs"][0]), "has 4 graphs for 1 folds"),
    "one file for two graphs": (same_file, r"two graphs are the same file graphs/ct-0\.onnx"),
    "roles exchanged": (exchange_roles, "the ct graph of fold 0 is 'ct-0', which is no ct graph"),
    "graphs exchanged": (exchange_graphs, "the ct graph of fold 0 is 'text-0'"),
    "fusion of another role": (lambda m: graph(m, "fusion").update(role="ct"), "no graph 'fusion' of that role"),
    "output of 10^9": (
        lambda m: graph(m, "ct-0")["outputs"][0].update(shape=["B", 10**9]),
        "outputs of graph 'ct-0'",
    ),
    "input of another type": (
        lambda m: graph(m, "text-0")["inputs"][0].update(dtype="float32"),
        "inputs of graph 'text-0'",
    ),
    "CT graph with a tokenizer": (
        lambda m: graph(m, "ct-0").update(tokenizer="tokenizers/text-0.json"),
        "graph 'ct-0' has a tokenizer",
    ),
}


@pytest.fixture
def forged(tmp_path) -> Callable[[Change], Path]:
    """Copies the published bundle with a changed manifest and a fresh digest."""

    def forge(change: Change) -> Path:
        folder = shutil.copytree(PUBLISHED / "bundle", tmp_path / "bundle")
        edit_manifest(folder, change)
        return folder

    return forge


@pytest.mark.parametrize("name", ["graphs/CT-0.onnx", "GRAPHS/ct-0.onnx"])
def test_names_that_differ_by_case_are_rejected(tmp_path, name):
    """No two files of a bundle are one file on a system that ignores case."""
    folder = shutil.copytree(PUBLISHED / "bundle", tmp_path / "bundle")
    (folder / name).parent.mkdir(exist_ok=True)
    shutil.copy(folder / "graphs" / "ct-0.onnx", folder / name)
    edit_manifest(folder, lambda m: m["files"].update({name: m["files"]["graphs/ct-0.onnx"]}))
    with pytest.raises(DamagedError, match="has the name of another one"):
        inspect_bundle(folder)


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradiction_is_rejected_quickly(forged, name):
    """Every contradiction is named, within two seconds."""
    change, message = CONTRADICTIONS[name]
    folder, start = forged(change), perf_counter()
    with pytest.raises(DamagedError, match=message):
        inspect_bundle(folder)
    assert perf_counter() - start < 2


@pytest.mark.parametrize("command", ["predict", "explain", "report", "verify"])
def test_contradiction_ends_every_command(forged, command, tmp_path):
    """The commands end with exit code 6 and write nothing."""
    folder, out = forged(CONTRADICTIONS["golden count 10^9"][0]), tmp_path / "out"
    words: dict[str, list[Any]] = {
        "predict": ["predict", PUBLISHED / "case", "--bundle", folder, "--engine", "onnx"],
        "explain": ["explain", PUBLISHED / "case", "--bundle", folder, "--out", out],
        "report": ["report", PUBLISHED / "case", "--bundle", folder, "--out", out],
        "verify": ["verify", folder, "--engine", "onnx"],
    }
    outcome = tmi(*words[command])
    assert outcome.code == 6, outcome.err
    assert "contradicts itself" in outcome.err
    assert not out.exists()


def test_network_of_other_sizes_than_its_weights_is_not_created(forged, tmp_path):
    """Sizes that are possible but not those of the weights are rejected before memory is allocated for them."""
    folder = forged(sizes(text_encoder__intermediate_size=2**20, text_encoder__layers=200))
    outcome = tmi("explain", PUBLISHED / "case", "--bundle", folder, "--out", tmp_path / "out")
    assert outcome.code == 6, outcome.err
    assert "not those of the network in its config" in outcome.err


@pytest.mark.parametrize("command", ["explain", "report"])
@pytest.mark.parametrize("part", ["ct-0", "fusion"])
def test_exchanged_weights_fail_the_self_test(tmp_path, command, part):
    """Eager weights that were exchanged under fresh digests are compared with the reference before they explain."""
    folder = shutil.copytree(PUBLISHED / "bundle", tmp_path / "bundle")
    weights = folder / "weights" / f"{part}.safetensors"
    save_file({name: np.asarray(t * 1.5, dtype=t.dtype) for name, t in load_file(weights).items()}, weights)
    reseal(folder)
    outcome = tmi(command, PUBLISHED / "case", "--bundle", folder, "--out", tmp_path / "out")
    assert outcome.code == 4, outcome.err
    assert "engine eager does not match the validated model" in outcome.err
    assert not (tmp_path / "out").exists()
