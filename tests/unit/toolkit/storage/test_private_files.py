"""Private files and folders: their modes, and entries of caches that another user wrote or can write."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from factories.other_user import OTHER_UID, as_other_user, shared_folder, umask
from factories.paths import ROOT
from tmi.runtime.engines.compiled_cache import CompiledCache
from tmi.toolkit.storage.atomic_files import staged_folder, write_text
from tmi.toolkit.storage.content_cache import ContentCache
from tmi.toolkit.storage.private_files import make_private_folder, open_private, write_private


@pytest.fixture
def shared(monkeypatch) -> Iterator[Path]:
    """A cache folder that users share."""
    with shared_folder() as folder:
        monkeypatch.setenv("TMI_CACHE", str(folder))
        yield folder


@dataclass(frozen=True)
class Kind:
    """One kind of cache: how its payload is stored and read."""

    put: Callable[[bytes], object]
    get: Callable[[], bytes | None]


def compiled_payload() -> bytes | None:
    mapped = CompiledCache().open("key")
    return None if mapped is None else bytes(mapped.payload)


def content_cache(kind: str) -> Kind:
    return Kind(lambda data: ContentCache(kind).put("key", data), lambda: ContentCache(kind).get("key"))


KINDS = {kind: content_cache(kind) for kind in ("radiomics", "prepared", "embeddings")} | {
    "compiled": Kind(lambda data: CompiledCache().put("key", memoryview(data)), compiled_payload),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_cache_is_private_whatever_the_umask(name, mask, tmp_path, monkeypatch):
    """The cache's folders are 0700 and its files 0600, under umask 000 too."""
    monkeypatch.setenv("TMI_CACHE", str(tmp_path / "cache"))
    with umask(mask):
        assert KINDS[name].put(b"payload")
    modes = {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "cache").rglob("*") if p.is_file()}
    folders = {stat.S_IMODE(p.stat().st_mode) for p in [tmp_path / "cache", *(tmp_path / "cache").iterdir()]}
    assert (folders, modes) == ({0o700}, {0o600})
    assert KINDS[name].get() == b"payload"


@pytest.mark.parametrize("name", KINDS)
def test_entry_of_another_user_is_not_believed(name, shared):
    """Another user's entry, valid in itself, is a miss, and nothing is stored in that user's folder."""
    with as_other_user():
        assert KINDS[name].put(b"forged")
        assert KINDS[name].get() == b"forged"
    assert KINDS[name].get() is None
    assert not KINDS[name].put(b"of a patient")


@pytest.mark.parametrize("name", KINDS)
def test_file_given_by_another_user_is_not_believed(name, shared):
    """Another user's file in one's own folder is a miss and is replaced."""
    assert KINDS[name].put(b"own")
    (file,) = next(path for path in shared.iterdir() if path.is_dir()).iterdir()
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(file, OTHER_UID, -1)
    assert KINDS[name].get() is None
    assert KINDS[name].put(b"again")
    assert KINDS[name].get() == b"again"


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("what", "mode"), [("file", 0o620), ("file", 0o602), ("folder", 0o770), ("folder", 0o777)])
def test_entry_that_others_can_write_is_not_believed(name, what, mode, shared):
    """A file or folder with write access for others is a miss; storing again takes that access away."""
    KINDS[name].put(b"payload")
    folder = next(path for path in shared.iterdir() if path.is_dir())
    (file,) = folder.iterdir()
    (file if what == "file" else folder).chmod(mode)
    assert KINDS[name].get() is None
    KINDS[name].put(b"again")
    assert KINDS[name].get() == b"again"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_special_file_is_not_opened(kind, tmp_path):
    """A link to a valid file, a pipe and a folder raise at once, and are not waited for."""
    make_private_folder(tmp_path / "private")
    write_private(tmp_path / "private" / "valid", [b"payload"])
    path = tmp_path / "private" / "entry"
    if kind == "link":
        path.symlink_to("valid")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(OSError, match=r"Too many levels|not a regular file|Is a directory"):
        open_private(path)


def test_failed_write_leaves_nothing(tmp_path):
    """An interrupted write leaves neither the file nor a temporary one."""

    def pieces() -> Iterator[bytes]:
        yield b"begun"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_private(tmp_path / "private" / "entry", pieces())
    assert list((tmp_path / "private").iterdir()) == []


@pytest.mark.parametrize("mask", [0o002, 0o022, 0o027, 0o077])
def test_staged_files_follow_the_umask(mask, tmp_path):
    """Files that a library wrote for the owner only get the umask's mode with the rest; a link is not followed."""
    outside = tmp_path / "outside"
    write_private(outside / "file", [b""])
    with umask(mask), staged_folder(tmp_path / "out") as stage:
        write_text(stage / "weights" / "text", "text")
        (stage / "weights" / "text").chmod(0o600)
        (stage / "weights").chmod(0o700)
        (stage / "link").symlink_to(outside / "file")
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777 & ~mask
    assert stat.S_IMODE((tmp_path / "out" / "weights").stat().st_mode) == 0o777 & ~mask
    assert stat.S_IMODE((tmp_path / "out" / "weights" / "text").stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((outside / "file").stat().st_mode) == 0o600


def test_every_cache_reads_through_the_owner_check():
    """A module that opens files of a cache opens them with `open_private`, or holds a cache that does."""
    folders = [ROOT / part / "tmi" for part in ("toolkit", "runtime", "training", "export")]
    using = [
        path
        for folder in folders
        for path in folder.rglob("*.py")
        if re.search(r"\b(cache|state)_root\(\)|\((DiskCache)\):", path.read_text(encoding="utf-8"))
    ]
    assert {path.name for path in using} >= {
        "machine_records.py",
        "compiled_cache.py",
        "content_cache.py",
        "accepted.py",
    }
    for path in using:
        text = path.read_text(encoding="utf-8")
        assert "open_private(" in text or path.name in ("disk_cache.py", "doctor.py", "user_folders.py"), (
            path
        )  # they open none
        assert not re.search(r"\.read_(text|bytes)\(|\.open\(\"rb?\"", text), path
