"""Writing: never half a file or folder, never over what exists."""

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


def test_text_is_written_whole_with_its_folders_and_over_an_older_one(tmp_path):
    file = tmp_path / "a" / "b" / "note.txt"
    write_text(file, "eins\n")
    write_text(file, "zwei ä\n")
    assert file.read_bytes() == "zwei ä\n".encode()
    assert names(file.parent) == ["note.txt"]
    assert sha256_file(file) == sha256_bytes(file.read_bytes())


def test_a_failed_write_leaves_the_old_text_and_nothing_beside_it(tmp_path, monkeypatch):
    file = tmp_path / "note.txt"
    write_text(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "\udcff")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_text(file, "new")
    assert file.read_text() == "old"
    assert names(tmp_path) == ["note.txt"]


def test_json_goes_there_and_back(tmp_path):
    value = {"b": [1, 2.5, None], "a": "ä"}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json", kind="run") == value


@pytest.mark.parametrize("content", [b'{"a": 1', b"\xff\xfe", b""])
def test_our_own_json_that_cannot_be_read_is_damaged(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DamagedError, match=r"run: .*x\.json cannot be read as JSON") as error:
        read_json(tmp_path / "x.json", kind="run")
    assert error.value.fix == "make the run again"


def test_our_own_json_that_is_gone_is_damaged(tmp_path):
    with pytest.raises(DamagedError, match=r"bundle: x\.json is missing"):
        read_json(tmp_path / "x.json", kind="bundle")
    (tmp_path / "y.json").mkdir()
    with pytest.raises(DamagedError, match="cannot be read as JSON"):
        read_json(tmp_path / "y.json", kind="bundle")


def test_what_exists_is_refused_without_force(tmp_path):
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


def test_a_staged_folder_appears_only_when_it_is_done(tmp_path):
    target = tmp_path / "deep" / "out"
    with staged_folder(target) as stage:
        (stage / "x").write_text("1")
        assert not target.exists()
    assert names(target.parent) == ["out"]
    assert names(target) == ["x"]


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_staged_folder_vanishes_when_its_block_fails_and_the_old_one_stays(tmp_path, stop):
    target = tmp_path / "out"
    write_text(target / "old", "")
    with pytest.raises(stop):
        stage_and_stop(target, stop)
    assert names(tmp_path) == ["out"]
    assert names(target) == ["old"]


@pytest.mark.parametrize("old", ["folder", "empty folder", "file"])
def test_a_staged_folder_replaces_what_was_there(tmp_path, old):
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


def test_the_old_folder_is_whole_until_the_new_one_has_its_name(tmp_path, monkeypatch):
    """A kill in the middle of the exchange must not leave half of the old folder under its name."""
    target, seen = tmp_path / "out", []
    for k in range(3):
        write_text(target / f"old{k}", "")
    replace = os.replace

    def watched(source: Path, destination: Path) -> None:
        replace(source, destination)
        seen.append(names(target) if target.exists() else None)

    monkeypatch.setattr(os, "replace", watched)
    with staged_folder(target) as stage:
        (stage / "new").write_bytes(b"")
    assert seen == [None, ["new"]]


def test_a_failed_exchange_puts_the_old_folder_back(tmp_path, monkeypatch):
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


def test_what_a_kill_left_behind_is_taken_back_or_cleared_away(tmp_path):
    target = tmp_path / "out"
    write_text(tmp_path / ".out.old" / "old", "")
    write_text(tmp_path / ".out.part" / "half", "")
    with pytest.raises(RuntimeError):
        stage_and_stop(target, RuntimeError)
    assert names(tmp_path) == ["out"]
    assert names(target) == ["old"]


@pytest.mark.parametrize("target", [".", "..", "../..", "./"])
def test_the_folder_one_works_in_is_never_replaced(tmp_path, monkeypatch, target):
    here = tmp_path / "a" / "b"
    write_text(here / "thesis", "")
    monkeypatch.chdir(here)
    with pytest.raises(UsageError, match="is the folder you are in, or one above it"), staged_folder(Path(target)):
        raise AssertionError("not reached")
    assert names(here) == ["thesis"]


def test_a_link_is_followed_so_that_the_new_folder_lies_where_the_old_one_lay(tmp_path):
    real = tmp_path / "disk" / "out"
    write_text(real / "old", "")
    link = tmp_path / "out"
    link.symlink_to(real)
    with staged_folder(link) as stage:
        (stage / "new").write_text("")
    assert link.is_symlink()
    assert names(real) == ["new"]
