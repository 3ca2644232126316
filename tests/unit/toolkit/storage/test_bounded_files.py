"""Files are opened without waiting, only if they are regular and not larger than their kind allows."""

from __future__ import annotations

import ast
import io
import os
import socket
from pathlib import Path

import pytest

from factories.paths import ROOT
from tmi.toolkit.storage.bounded_files import (
    FileTooLargeError,
    NotRegularFileError,
    open_regular,
    read_bytes,
    read_text,
    regular_file,
)
from tmi.toolkit.storage.hashing import sha256_bytes, sha256_file

pytestmark = pytest.mark.timeout(30)
GIB = 2**30


@pytest.fixture(params=["pipe", "socket", "device", "link to a pipe", "link to a device"])
def special(request, tmp_path):
    path = tmp_path / "file"
    target = tmp_path / "target" if request.param.startswith("link") else path
    if request.param.endswith("pipe"):
        os.mkfifo(target)
    elif request.param.endswith("socket"):
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    else:
        path.symlink_to("/dev/zero")
        return path
    if target != path:
        path.symlink_to(target)
    return path


@pytest.mark.parametrize("read", [open_regular, lambda p: read_bytes(p, max_bytes=10), sha256_file,
                                  lambda p: io.FileIO(p, opener=regular_file)])  # fmt: skip
def test_special_file_is_not_waited_for(special, read):
    """A pipe without a writer, a socket and a device raise an OSError at once."""
    with pytest.raises(OSError):
        read(special)


def test_special_file_is_named(tmp_path):
    """The error says what the file is."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotRegularFileError, match="it is a pipe, not a regular file"):
        open_regular(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "missing")


@pytest.mark.parametrize(("size", "accepted"), [(0, True), (2**20, True), (2**20 + 1, False), (6 * GIB, False)])
def test_size_is_checked_before_reading(tmp_path, size, accepted):
    """A file of the limit is read, a larger one raises without an allocation of its size."""
    path = tmp_path / "file"
    with path.open("wb") as stream:
        stream.truncate(size)
    if accepted:
        assert len(read_bytes(path, max_bytes=2**20)) == size
        assert sha256_file(path, max_bytes=2**20) == sha256_bytes(bytes(size))
        return
    for read in (read_bytes, read_text, sha256_file):
        with pytest.raises(FileTooLargeError, match="it is larger than 1 MiB"):
            read(path, max_bytes=2**20)


def test_file_that_grows_is_cut_off(tmp_path, monkeypatch):
    """A file that grows after its size was checked is rejected, too."""
    path = tmp_path / "file"
    path.write_bytes(bytes(11))
    monkeypatch.setattr(os, "fstat", lambda descriptor: os.stat_result((0o100644, 0, 0, 1, 0, 0, 5, 0, 0, 0)))
    with pytest.raises(FileTooLargeError):
        read_bytes(path, max_bytes=10)


def test_text_keeps_line_breaks_and_drops_the_byte_order_mark(tmp_path):
    """Text is decoded as it is stored."""
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbfa\r\nb\xc3\xa4")
    assert read_text(tmp_path / "file", max_bytes=99) == "a\r\nbä"


PARSERS = {"json": {"load", "loads"}, "tomllib": {"load", "loads"}, "yaml": {"load", "safe_load"},
           "csv": {"reader", "DictReader"}}  # fmt: skip
OWN_INPUT = {
    "the reader itself": ("storage/documents", "storage/csv_files"),
    "files of the installed package": (
        "clinical/schema", "ingest/mask_labels", "qc/report", "radiomics/settings", "preprocessing/cache",
        "bundle/manifest", "serving/results", "report/pages",
    ),
    "files of the kernel": (
        "storage/atomic_files", "compute/memory", "engines/host", "cli/bench_worker", "verification/trial",
    ),
    "text of this process or of its worker": (
        "clinical/tokenizer", "benchmark/benchmark", "serving/result_log", "tabular/reader",
        "verification/timing_process",
    ),
    "documents of Triton's own process": ("triton/backend",),
    "lock files, of which a few bytes are read": ("storage/outputs",),
    "files that the export has just written": ("bundle/reproducible", "checks/preprocessing_reference"),
    "timing caches of TensorRT": ("tensorrt/builder",),
}  # fmt: skip
"""Reason -> modules that read or parse something else than a file from outside."""


def direct_reads(path: Path) -> list[str]:
    """Calls of a module that read a file, or parse a document, without limits."""
    calls = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner, name = node.func.value, node.func.attr
        parser = isinstance(owner, ast.Name) and name in PARSERS.get(owner.id, ())
        reads = name in ("read_text", "read_bytes")
        opens = name == "open" and any(isinstance(a, ast.Constant) and a.value in ("r", "rb") for a in node.args)
        if parser or reads or opens:
            calls.append(f"{path.name}:{node.lineno}: {ast.unparse(node)[:80]}")
    return calls


def test_every_file_is_read_by_the_bounded_reader():
    """No module opens or parses a file from outside in another way."""
    exempt = [module for modules in OWN_INPUT.values() for module in modules]
    found: dict[str, list[str]] = {}
    for package in ("toolkit", "runtime", "training", "export"):
        for path in sorted((ROOT / package / "tmi" / package).rglob("*.py")):
            if calls := direct_reads(path):
                found[f"{path.parent.name}/{path.stem}"] = calls
    assert set(found) <= set(exempt), {k: v for k, v in found.items() if k not in exempt}


def test_direct_read_is_found(tmp_path):
    """The search finds each way to read a file."""
    (tmp_path / "module.py").write_text("json.loads(path.read_bytes())\nyaml.safe_load(x)\npath.open('rb')\nx.open()")
    assert len(direct_reads(tmp_path / "module.py")) == 4
