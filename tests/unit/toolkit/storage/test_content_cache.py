"""The cache by content: what is whole comes back, what is not is made anew."""

from __future__ import annotations

import multiprocessing
import os
import stat
import time

import pytest

from tmi.toolkit.storage.content_cache import MAGIC, ContentCache
from tmi.toolkit.storage.disk_cache import cache_root


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TMI_CACHE", str(tmp_path / "cache"))
    return ContentCache("things")


def entry_of(cache: ContentCache):
    (path,) = cache.folder.glob("*.entry")
    return path


def test_what_was_put_comes_back(cache):
    assert cache.get("key") is None
    assert cache.put("key", b"payload")
    assert cache.get("key") == b"payload"
    assert cache.get("another key") is None
    assert cache.put("key", b"")
    assert cache.get("key") == b""


DAMAGE = {
    "cut short": lambda data: data[:-1],
    "longer": lambda data: data + b"x",
    "a bit turned": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "digest changed": lambda data: data[:20] + bytes([data[20] ^ 1]) + data[21:],
    "another form": lambda data: b"tmi-entry-9\n" + data[len(MAGIC) :],
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_entry_is_absent_and_removed_and_can_be_made_anew(cache, name):
    cache.put("key", b"payload")
    path = entry_of(cache)
    path.write_bytes(DAMAGE[name](path.read_bytes()))
    assert cache.get("key") is None
    assert not path.exists()
    cache.put("key", b"payload")
    assert cache.get("key") == b"payload"


def test_an_entry_under_the_name_of_another_is_absent(cache):
    cache.put("one", b"payload of one")
    one = entry_of(cache)
    data = one.read_bytes()
    one.unlink()
    cache.put("two", b"payload of two")
    entry_of(cache).write_bytes(data)
    assert cache.get("two") is None


def test_the_folder_is_its_owners_alone(cache):
    cache.put("key", b"payload")
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(entry_of(cache).stat().st_mode) == 0o600


def test_what_was_used_longest_ago_goes_first(cache):
    cache.max_bytes = 10 * 1100
    for k in range(10):
        cache.put(str(k), bytes(1000))
        path = cache.path(str(k))
        os.utime(path, (k, k))
    assert cache.get("0") is not None  # used now: 1 is the oldest from here
    cache.put("10", bytes(1000))
    kept = {k for k in range(11) if cache.path(str(k)).exists()}
    assert kept == {0, 3, 4, 5, 6, 7, 8, 9, 10}


def test_one_entry_above_the_bound_is_kept_as_the_newest(cache):
    cache.max_bytes = 10
    cache.put("old", bytes(1000))
    os.utime(entry_of(cache), (1, 1))
    cache.put("new", bytes(1000))
    assert cache.get("new") is not None
    assert cache.get("old") is None


def test_what_a_killed_writer_left_is_swept(cache):
    cache.put("key", b"payload")
    old, young = cache.folder / "a.part", cache.folder / "b.part"
    old.write_bytes(b"half")
    young.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    cache.put("key", b"payload")
    assert not old.exists()
    assert young.exists()


def test_off_stores_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TMI_CACHE", "off")
    cache = ContentCache("things")
    assert (cache.enabled, cache.put("key", b"payload"), cache.get("key")) == (False, False, None)


def test_a_place_that_cannot_be_written_is_told_and_not_raised(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("TMI_CACHE", str(tmp_path / "file"))
    cache = ContentCache("things")
    assert (cache.enabled, cache.put("key", b"payload"), cache.get("key")) == (True, False, None)


def test_the_place_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("TMI_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_root() == tmp_path / "own"
    monkeypatch.delenv("TMI_CACHE")
    assert cache_root() == tmp_path / "xdg" / "tmi"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_root() == tmp_path / "home" / ".cache" / "tmi"


def _write_and_read(folder: str, seed: int) -> int:
    """Wrong payloads that a process met while others wrote the same keys."""
    os.environ["TMI_CACHE"] = folder
    cache, wrong = ContentCache("shared", max_bytes=40_000), 0
    for k in range(60):
        key = str((k * 7 + seed) % 9)
        data = cache.get(key)
        wrong += data is not None and data != key.encode() * 5000
        cache.put(key, key.encode() * 5000)
    return wrong


def test_processes_that_share_a_cache_never_read_half_an_entry(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.starmap(_write_and_read, [(str(tmp_path), seed) for seed in range(4)]) == [0, 0, 0, 0]
    assert not list((tmp_path / "shared").glob("*.part"))
