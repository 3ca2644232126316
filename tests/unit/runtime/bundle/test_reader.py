"""Opening a bundle: a changed, added or missing byte in any file is refused before anything is believed."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from factories.small_bundle import FILES, small_manifest, write_small_bundle
from tmi.runtime.bundle.reader import fingerprint, open_bundle
from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.storage.hashing import sha256_file

MANIFEST, DIGEST = "manifest.json", "manifest.json.sha256"
EVERY_FILE = [*FILES, MANIFEST, DIGEST]


@pytest.fixture
def folder(tmp_path) -> Path:
    write_small_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_an_untouched_bundle_opens_and_is_named_by_its_manifests_digest(folder):
    bundle = open_bundle(folder)
    assert bundle.digest == sha256_file(folder / MANIFEST)
    assert bundle.manifest == replace(small_manifest(), files=fingerprint(folder))
    assert set(bundle.manifest.files) == set(FILES)


def test_a_bundle_may_be_moved_and_copied(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert open_bundle(tmp_path / "elsewhere").digest == open_bundle(folder).digest


@pytest.mark.parametrize("name", EVERY_FILE)
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_changed_byte_in_any_file_is_refused(folder, name, where):
    data = bytearray((folder / name).read_bytes())
    data[{"first": 0, "middle": len(data) // 2, "last": -1}[where]] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(DamagedError, match="was changed after the export") as error:
        open_bundle(folder)
    assert (MANIFEST if name == DIGEST else name) in str(error.value)
    assert "export it again" in error.value.fix


@pytest.mark.parametrize("name", EVERY_FILE)
@pytest.mark.parametrize("change", ["appended", "cut", "emptied"])
def test_a_byte_more_or_less_in_any_file_is_refused(folder, name, change):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes({"appended": data + b"\n", "cut": data[:-1], "emptied": b""}[change])
    with pytest.raises(DamagedError, match="was changed after the export"):
        open_bundle(folder)


@pytest.mark.parametrize("name", EVERY_FILE)
def test_a_missing_file_is_refused_by_name(folder, name):
    (folder / name).unlink()
    with pytest.raises(DamagedError) as error:
        open_bundle(folder)
    assert f"{name} is missing" in str(error.value)


@pytest.mark.parametrize("name", ["graphs/ct-1.onnx", "notes.txt", "cache/deep/x.blob", "graphs/.hidden"])
def test_a_file_that_the_manifest_does_not_name_is_refused(folder, name):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"")
    with pytest.raises(DamagedError, match="is not part of the bundle") as error:
        open_bundle(folder)
    assert name in str(error.value)
    assert error.value.fix == "remove that file"


def test_two_files_that_changed_places_are_refused(folder):
    one, other = folder / "graphs/ct-0.onnx", folder / "graphs/fusion.onnx"
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    with pytest.raises(DamagedError, match="was changed after the export"):
        open_bundle(folder)


@pytest.mark.parametrize("field", ["graph", "tokenizer", "scaler", "outside"])
def test_a_manifest_that_uses_a_file_it_never_fingerprinted_is_refused(tmp_path, field):
    """Else a rewritten manifest could point the runtime at bytes that nobody compared."""
    manifest, stray = small_manifest(), "../stray.bin" if field == "outside" else "graphs/stray.bin"
    graphs = list(manifest.graphs)
    folds = manifest.folds
    if field in ("graph", "outside"):
        graphs[0] = replace(graphs[0], artefacts={"onnx": stray})
    elif field == "tokenizer":
        graphs[1] = replace(graphs[1], tokenizer=stray)
    else:
        folds = (replace(folds[0], scaler=stray),)
    write_small_bundle(tmp_path / "bundle", graphs=tuple(graphs), folds=folds)
    with pytest.raises(DamagedError, match="is used but was never fingerprinted") as error:
        open_bundle(tmp_path / "bundle")
    assert stray in str(error.value)


def test_a_manifest_of_another_schema_is_refused_even_with_the_right_digest(tmp_path):
    write_small_bundle(tmp_path / "bundle", schema="tmi-bundle/9")
    with pytest.raises(DamagedError, match="'tmi-bundle/9'"):
        open_bundle(tmp_path / "bundle")


@pytest.mark.parametrize("content", [b"not json", b"[]", b"\xff"])
def test_a_manifest_that_is_no_json_object_is_damaged_even_with_the_right_digest(folder, content):
    (folder / MANIFEST).write_bytes(content)
    (folder / DIGEST).write_text(f"{sha256_file(folder / MANIFEST)}  {MANIFEST}\n")
    with pytest.raises(DamagedError, match=r"manifest\.json cannot be read|manifest has schema None"):
        open_bundle(folder)


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_text("x")])
def test_what_was_never_a_bundle_is_wrong_usage(tmp_path, make):
    make(tmp_path / "b")
    with pytest.raises(UsageError, match=r"is no bundle: manifest\.json is missing") as error:
        open_bundle(tmp_path / "b")
    assert "TMI_BUNDLE" in error.value.fix


def test_the_digest_file_is_in_the_form_that_sha256sum_reads(folder):
    if shutil.which("sha256sum") is None:
        pytest.skip("sha256sum is not installed")
    done = subprocess.run(["sha256sum", "-c", DIGEST], cwd=folder, capture_output=True, text=True, check=False)
    assert done.stdout == "manifest.json: OK\n"


def test_an_artefact_kind_counts_only_when_every_graph_has_it(tmp_path):
    manifest = small_manifest()
    both = replace(manifest.graphs[0], artefacts={"onnx": "graphs/ct-0.onnx", "weights": "graphs/fusion.onnx"})
    write_small_bundle(tmp_path / "bundle", graphs=(both, *manifest.graphs[1:]))
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.has("onnx")
    assert not bundle.has("weights")
    assert bundle.artefact(both, "onnx") == tmp_path / "bundle" / "graphs" / "ct-0.onnx"
    assert bundle.artefact(manifest.graphs[1], "weights") is None
