"""Opening a bundle: a changed, added or missing byte in any file is rejected before its content is used."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from factories.small_bundle import FILES, small_manifest, write_small_bundle
from tmi.runtime.bundle import reader as reader_module
from tmi.runtime.bundle.reader import fingerprint, inspect_bundle, open_bundle
from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.storage.hashing import sha256_file

MANIFEST, DIGEST = "manifest.json", "manifest.json.sha256"
EVERY_FILE = [*FILES, MANIFEST, DIGEST]


@pytest.fixture
def folder(tmp_path) -> Path:
    write_small_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_unchanged_bundle_opens(folder):
    """An unchanged bundle opens; its digest is that of its manifest."""
    bundle = open_bundle(folder)
    assert bundle.digest == sha256_file(folder / MANIFEST)
    assert bundle.manifest == replace(small_manifest(), files=fingerprint(folder))
    assert set(bundle.manifest.files) == set(FILES)


def test_bundle_may_be_copied(folder, tmp_path):
    """A copied bundle opens with the same digest."""
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert open_bundle(tmp_path / "elsewhere").digest == open_bundle(folder).digest


@pytest.mark.parametrize("name", EVERY_FILE)
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_changed_byte_is_rejected(folder, name, where):
    """A flipped bit at any position of any file is rejected by file name."""
    data = bytearray((folder / name).read_bytes())
    data[{"first": 0, "middle": len(data) // 2, "last": -1}[where]] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(DamagedError, match="was changed after the export") as error:
        open_bundle(folder)
    assert (MANIFEST if name == DIGEST else name) in str(error.value)
    assert "export it again" in error.value.fix


@pytest.mark.parametrize("name", EVERY_FILE)
@pytest.mark.parametrize("change", ["appended", "cut", "emptied"])
def test_changed_length_is_rejected(folder, name, change):
    """A longer, shorter or empty file is rejected."""
    data = (folder / name).read_bytes()
    (folder / name).write_bytes({"appended": data + b"\n", "cut": data[:-1], "emptied": b""}[change])
    with pytest.raises(DamagedError, match="was changed after the export"):
        open_bundle(folder)


@pytest.mark.parametrize("name", EVERY_FILE)
def test_missing_file_is_rejected(folder, name):
    """A missing file is rejected by name."""
    (folder / name).unlink()
    with pytest.raises(DamagedError) as error:
        open_bundle(folder)
    assert f"{name} is missing" in str(error.value)


@pytest.mark.parametrize("name", ["graphs/ct-1.onnx", "notes.txt", "cache/deep/x.blob", "graphs/.hidden"])
def test_unlisted_file_is_rejected(folder, name):
    """A file that the manifest does not list is rejected by name."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"")
    with pytest.raises(DamagedError, match="is not part of the bundle") as error:
        open_bundle(folder)
    assert name in str(error.value)
    assert error.value.fix == "remove that file"


def place_link(path: Path) -> None:
    outside = path.parents[1] / f"outside-{path.name}"
    if path.exists():
        path.rename(outside)
    path.symlink_to(outside)


def place_socket(path: Path) -> None:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.path.relpath(path))
    listener.close()


def place_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def place_loop(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


SPECIAL = {"a link": place_link, "a pipe": place_pipe, "a socket": place_socket, "a link, ": place_loop}


@pytest.mark.parametrize("name", [MANIFEST, DIGEST, "signature.sig", "graphs/ct-0.onnx", "extra", "graphs/extra"])
@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("reader", [open_bundle, inspect_bundle])
def test_special_file_is_rejected_unread(folder, kind, name, reader, monkeypatch):
    """A link, pipe or socket is rejected by name, whether the manifest names it or not; nothing waits for a pipe."""
    monkeypatch.chdir(folder)  # names of sockets are short
    SPECIAL[kind](folder / name)
    with pytest.raises(DamagedError, match=f"{name} is {kind.strip(', ')}, not a regular file") as error:
        reader(folder)
    assert "cp -RL" in error.value.fix


def test_linked_and_surplus_folders_are_rejected(folder, tmp_path):
    """A folder of the bundle that is a link is rejected, and so is a folder that holds no file of the manifest."""
    (folder / "empty" / "deep").mkdir(parents=True)
    with pytest.raises(DamagedError, match="folder empty is not part of the bundle"):
        open_bundle(folder)
    (folder / "empty" / "deep").rmdir()
    (folder / "empty").rmdir()
    assert open_bundle(folder)
    shutil.copytree(folder / "graphs", tmp_path / "elsewhere")
    shutil.rmtree(folder / "graphs")
    (folder / "graphs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamagedError, match="graphs is a link, not a regular file"):
        open_bundle(folder)


def test_bundle_itself_may_be_a_link(folder, tmp_path):
    """The given path may be a link to the bundle."""
    (tmp_path / "link").symlink_to(folder)
    assert open_bundle(tmp_path / "link").digest == open_bundle(folder).digest


def test_device_is_named():
    """Any other special file is called a device."""
    assert reader_module._kind(os.stat("/dev/null").st_mode) == "a device"


def test_oversized_manifest_is_rejected_unread(folder):
    """A manifest of more than 64 MiB is rejected before it is read; the sparse file takes no space."""
    with (folder / MANIFEST).open("r+b") as stream:
        stream.truncate(reader_module.MAX_MANIFEST_BYTES + 1)
    with pytest.raises(DamagedError, match=r"manifest\.json is too large"):
        open_bundle(folder)


def test_swapped_files_are_rejected(folder):
    """Two files with swapped contents are rejected."""
    one, other = folder / "graphs/ct-0.onnx", folder / "graphs/fusion.onnx"
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    with pytest.raises(DamagedError, match="was changed after the export"):
        open_bundle(folder)


@pytest.mark.parametrize("field", ["graph", "tokenizer", "scaler", "outside"])
def test_file_without_fingerprint_is_rejected(tmp_path, field):
    """A manifest that uses a file without a fingerprint is rejected; else a rewritten manifest could name unchecked
    files.
    """
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
    with pytest.raises(DamagedError, match="is used but has no fingerprint") as error:
        open_bundle(tmp_path / "bundle")
    assert stray in str(error.value)


def test_unknown_schema_with_valid_digest_is_rejected(tmp_path):
    """A manifest of an unknown schema is rejected even if its digest is valid."""
    write_small_bundle(tmp_path / "bundle", schema="tmi-bundle/9")
    with pytest.raises(DamagedError, match="'tmi-bundle/9'"):
        open_bundle(tmp_path / "bundle")


@pytest.mark.parametrize("content", [b"not json", b"[]", b"\xff"])
def test_non_json_manifest_with_valid_digest_is_damaged(folder, content):
    """A manifest that is not a JSON object is rejected even if its digest is valid."""
    (folder / MANIFEST).write_bytes(content)
    (folder / DIGEST).write_text(f"{sha256_file(folder / MANIFEST)}  {MANIFEST}\n")
    with pytest.raises(DamagedError, match=r"manifest\.json cannot be read|manifest has schema None"):
        open_bundle(folder)


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_text("x")])
def test_non_bundle_is_a_usage_error(tmp_path, make):
    """A path that is not a bundle is a usage error, not damage."""
    make(tmp_path / "b")
    with pytest.raises(UsageError, match=r"is not a bundle: manifest\.json is missing") as error:
        open_bundle(tmp_path / "b")
    assert "TMI_BUNDLE" in error.value.fix


def test_digest_file_is_valid_for_sha256sum(folder):
    """`sha256sum -c` accepts the digest file."""
    if shutil.which("sha256sum") is None:
        pytest.skip("sha256sum is not installed")
    process = subprocess.run(["sha256sum", "-c", DIGEST], cwd=folder, capture_output=True, text=True, check=False)
    assert process.stdout == "manifest.json: OK\n"


def test_has_requires_the_kind_for_every_graph(tmp_path):
    """`has` is true only if every graph has an artefact of the kind."""
    manifest = small_manifest()
    both = replace(manifest.graphs[0], artefacts={"onnx": "graphs/ct-0.onnx", "weights": "golden.safetensors"})
    write_small_bundle(tmp_path / "bundle", graphs=(both, *manifest.graphs[1:]))
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.has("onnx")
    assert not bundle.has("weights")
    assert bundle.artefact(both, "onnx") == tmp_path / "bundle" / "graphs" / "ct-0.onnx"
    assert bundle.artefact(manifest.graphs[1], "weights") is None
