"""What is loaded is what was compared: a file that is exchanged after its digest was compared is never used."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from factories.paths import ROOT
from factories.planted_faults import write_key_pair
from tmi.runtime.bundle.reader import Bundle, open_bundle, write_manifest
from tmi.runtime.bundle.signing import open_trusted_bundle, sign_bundle
from tmi.runtime.engines.registry import open_engine
from tmi.runtime.explanation.model_source import open_bundle_models
from tmi.runtime.serving.predictor import Predictor
from tmi.runtime.verification.verify import read_references
from tmi.toolkit.errors import DamagedError

PUBLISHED = ROOT / "tests" / "unit" / "runtime" / "bundle" / "data" / "tmi-bundle-2" / "bundle"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TMI_CACHE", "off")  # a compiled graph is keyed by the recorded digest
    return shutil.copytree(PUBLISHED, tmp_path / "bundle")


def flip(path: Path) -> None:
    """Exchange a file for one of equal size, as a rename does."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    other = path.with_suffix(".other")
    other.write_bytes(data)
    os.replace(other, path)


def grow(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"x")


@pytest.mark.parametrize("change", [flip, grow, Path.unlink])
@pytest.mark.parametrize(("engine", "kind"), [("onnx", "onnx"), ("openvino", "onnx"), ("eager", "weights")])
def test_exchanged_graph_is_not_loaded(folder, engine, kind, change: Callable[[Path], None]):
    """A graph that is exchanged between hashing and loading ends with an error on every engine."""
    bundle = open_bundle(folder)
    path = bundle.artefact(bundle.manifest.graphs[-1], kind)
    assert path is not None
    change(path)
    with pytest.raises(DamagedError, match=rf"{path.name} (was changed after the export|is missing)"):
        open_engine(engine, bundle, threads=1)


def test_engine_opens_no_graph_by_its_path(folder, monkeypatch):
    """The files may be gone once their bytes were read: the engine gets bytes, not a path to open again."""
    bundle, original = open_bundle(folder), Bundle.read

    def read_and_remove(self: Bundle, path: Path) -> bytes:
        data = original(self, path)
        path.unlink()
        return data

    monkeypatch.setattr(Bundle, "read", read_and_remove)
    open_engine("onnx", bundle, threads=1).close()
    assert not list((folder / "graphs").glob("*.onnx"))


def test_exchanged_weights_are_not_explained(folder):
    """The weights that `tmi explain` and `tmi report` use are the compared ones."""
    source = open_bundle_models(folder)
    flip(folder / "weights" / "fusion.safetensors")
    with pytest.raises(DamagedError, match=r"fusion\.safetensors was changed after the export"):
        source.load(source.folds[0])


def test_exchanged_reference_is_not_compared_with(folder):
    """The references of the parity checks are the compared ones: otherwise an exchanged graph could pass."""
    bundle = open_bundle(folder)
    flip(folder / "golden.safetensors")
    with pytest.raises(DamagedError, match=r"golden\.safetensors was changed after the export"):
        read_references(bundle)


def test_pipe_in_place_of_a_graph_is_not_waited_for(folder):
    """A pipe that takes a file's place ends with the same error, and reading it does not wait for a writer."""
    bundle = open_bundle(folder)
    path = folder / "graphs" / "fusion.onnx"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DamagedError, match=r"fusion\.onnx was changed after the export"):
        open_engine("onnx", bundle, threads=1)


@pytest.mark.parametrize(
    "name", ["scalers/fold0.json", "tokenizers/text-0.json", "clinical_schema.json", "golden-case.safetensors"]
)
def test_exchanged_data_file_is_not_used(folder, name, monkeypatch):
    """Scalers, tokenizers, the schema and the golden case are parsed from the compared bytes, like graphs."""

    def open_and_exchange(path: Path, key: Path | None) -> Bundle:
        bundle = open_bundle(path)
        flip(path / name)
        return bundle

    monkeypatch.setattr("tmi.runtime.serving.predictor.open_trusted_bundle", open_and_exchange)
    with pytest.raises(DamagedError, match=rf"{Path(name).name} was changed after the export"):
        Predictor.open(folder, engine="onnx", threads=1, verify=name.startswith("golden"))


def test_signature_covers_the_manifest_that_was_read(folder, tmp_path, monkeypatch):
    """A manifest that is exchanged for the signed one after it was read does not pass by that one's signature."""
    private, public = write_key_pair(tmp_path, "signer")
    sign_bundle(folder, private)
    signed = {name: (folder / name).read_bytes() for name in ("manifest.json", "manifest.json.sha256")}
    bundle = open_bundle(folder)
    write_manifest(folder, replace(bundle.manifest, threshold=0.1))

    def open_and_restore(path: Path) -> Bundle:
        forged = open_bundle(path)
        for name, data in signed.items():
            (path / name).write_bytes(data)
        return forged

    monkeypatch.setattr("tmi.runtime.bundle.signing.open_bundle", open_and_restore)
    with pytest.raises(DamagedError, match=r"manifest\.json was exchanged while it was checked"):
        open_trusted_bundle(folder, public)
    monkeypatch.setattr("tmi.runtime.bundle.signing.open_bundle", open_bundle)
    assert open_trusted_bundle(folder, public).digest == bundle.digest
