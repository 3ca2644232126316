"""Atomic writes of files and folders, and protection against overwriting."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.storage.atomic_files import read_json, require_absent, staged_folder, write_json, write_text
from tmi.toolkit.storage.hashing import sha256_bytes, sha256_file


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def stage_and_stop(target: Path, stop: type[BaseException]) -> None:
    with staged_folder(target) as stage:
        assert names(stage) == []
        (stage / "new").write_text("")
        raise stop


def test_write_text_creates_folders_and_overwrites(tmp_path):
    """Parent folders are created, and an older file is replaced without leftovers."""
    file = tmp_path / "a" / "b" / "note.txt"
    write_text(file, "eins\n")
    write_text(file, "zwei ä\n")
    assert file.read_bytes() == "zwei ä\n".encode()
    assert names(file.parent) == ["note.txt"]
    assert sha256_file(file) == sha256_bytes(file.read_bytes())


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    """A failed write keeps the old text and leaves no temporary file."""
    file = tmp_path / "note.txt"
    write_text(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "\udcff")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_text(file, "new")
    assert file.read_text() == "old"
    assert names(tmp_path) == ["note.txt"]


def test_json_round_trip(tmp_path):
    """A value is equal after writing and reading."""
    value = {"b": [1, 2.5, None], "a": "ä"}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json", kind="run") == value


@pytest.mark.parametrize("content", [b'{"a": 1', b"\xff\xfe", b""])
def test_unreadable_json_is_damaged(tmp_path, content):
    """Truncated, binary and empty files raise DamagedError with a fix."""
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DamagedError, match=r"run: .*x\.json cannot be read as JSON") as error:
        read_json(tmp_path / "x.json", kind="run")
    assert error.value.fix == "make the run again"


def test_missing_json_is_damaged(tmp_path):
    """A missing file, and a folder in its place, raise DamagedError."""
    with pytest.raises(DamagedError, match=r"bundle: x\.json is missing"):
        read_json(tmp_path / "x.json", kind="bundle")
    (tmp_path / "y.json").mkdir()
    with pytest.raises(DamagedError, match="cannot be read as JSON"):
        read_json(tmp_path / "y.json", kind="bundle")


def test_existing_path_requires_force(tmp_path):
    """A file or a non-empty folder raises UsageError without `force`."""
    file, folder, empty = tmp_path / "f", tmp_path / "d", tmp_path / "e"
    write_text(file, "")
    write_text(folder / "x", "")
    empty.mkdir()
    for path in (file, folder):
        with pytest.raises(UsageError, match=f"run {path} exists") as error:
            require_absent(path, force=False, kind="run")
        assert "--force" in error.value.fix
        require_absent(path, force=True, kind="run")
    require_absent(empty, force=False, kind="run")
    require_absent(tmp_path / "nowhere", force=False, kind="run")


def test_staged_folder_appears_after_its_block(tmp_path):
    """The target does not exist before the block ends."""
    target = tmp_path / "deep" / "out"
    with staged_folder(target) as stage:
        (stage / "x").write_text("1")
        assert not target.exists()
    assert names(target.parent) == ["out"]
    assert names(target) == ["x"]


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_failed_block_keeps_the_old_folder(tmp_path, stop):
    """If the block fails, the old folder stays and the staged one is deleted."""
    target = tmp_path / "out"
    write_text(target / "old", "")
    with pytest.raises(stop):
        stage_and_stop(target, stop)
    assert names(tmp_path) == ["out"]
    assert names(target) == ["old"]


@pytest.mark.parametrize("old", ["folder", "empty folder", "file"])
def test_staged_folder_replaces_the_target(tmp_path, old):
    """A folder, an empty folder and a file are replaced."""
    target = tmp_path / "out"
    if old == "file":
        target.write_text("old")
    else:
        target.mkdir()
        if old == "folder":
            write_text(target / "old" / "x", "")
    with staged_folder(target) as stage:
        (stage / "new").write_text("")
    assert names(tmp_path) == ["out"]
    assert names(target) == ["new"]


def test_exchange_renames_whole_folders(tmp_path, monkeypatch):
    """The exchange consists of renames, so a kill never leaves a part of the old folder."""
    target, states = tmp_path / "out", []
    for k in range(3):
        write_text(target / f"old{k}", "")
    replace = os.replace

    def watched(source: Path, destination: Path) -> None:
        replace(source, destination)
        states.append(names(target) if target.exists() else None)

    monkeypatch.setattr(os, "replace", watched)
    with staged_folder(target) as stage:
        (stage / "new").write_bytes(b"")
    assert states == [None, ["new"]]


def test_failed_exchange_restores_the_old_folder(tmp_path, monkeypatch):
    """If the second rename fails, the old folder is restored."""
    target = tmp_path / "out"
    write_text(target / "old", "")
    replace, calls = os.replace, []

    def second_fails(source: Path, destination: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(OSError, match="Input/output"), staged_folder(target) as stage:
        (stage / "new").write_bytes(b"")
    assert names(tmp_path) == ["out"]
    assert names(target) == ["old"]


def test_leftovers_of_a_kill_are_restored_or_removed(tmp_path):
    """The next call restores the old folder and removes a partial one."""
    target = tmp_path / "out"
    write_text(tmp_path / ".out.old" / "old", "")
    write_text(tmp_path / ".out.part" / "half", "")
    with pytest.raises(RuntimeError):
        stage_and_stop(target, RuntimeError)
    assert names(tmp_path) == ["out"]
    assert names(target) == ["old"]


@pytest.mark.parametrize("target", [".", "..", "../..", "./"])
def test_working_directory_is_never_replaced(tmp_path, monkeypatch, target):
    """The working directory and its parents are usage errors."""
    folder = tmp_path / "a" / "b"
    write_text(folder / "thesis", "")
    monkeypatch.chdir(folder)
    with pytest.raises(UsageError, match="is the working directory or one of its parents"), staged_folder(Path(target)):
        raise AssertionError("not reached")
    assert names(folder) == ["thesis"]


def test_symbolic_link_is_followed(tmp_path):
    """The folder behind a symbolic link is replaced, not the link."""
    real = tmp_path / "disk" / "out"
    write_text(real / "old", "")
    link = tmp_path / "out"
    link.symlink_to(real)
    with staged_folder(link) as stage:
        (stage / "new").write_text("")
    assert link.is_symlink()
    assert names(real) == ["new"]
