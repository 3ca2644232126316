"""Content-addressed cache: hits, damaged entries, size limit, concurrency."""

from __future__ import annotations

import multiprocessing
import os
import stat
import time

import pytest

from tmi.toolkit.storage.content_cache import MAGIC, ContentCache


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TMI_CACHE", str(tmp_path / "cache"))
    return ContentCache("things")


def entry_of(cache: ContentCache):
    (path,) = cache.folder.glob("*.entry")
    return path


def test_put_payload_is_returned(cache):
    """A stored payload is returned for its key only."""
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
def test_damaged_entry_is_a_miss(cache, name):
    """A damaged entry is a miss and is removed; the key can be stored again."""
    cache.put("key", b"payload")
    path = entry_of(cache)
    path.write_bytes(DAMAGE[name](path.read_bytes()))
    assert cache.get("key") is None
    assert not path.exists()
    cache.put("key", b"payload")
    assert cache.get("key") == b"payload"


def test_renamed_entry_is_a_miss(cache):
    """An entry under the file name of another key is a miss."""
    cache.put("one", b"payload of one")
    one = entry_of(cache)
    data = one.read_bytes()
    one.unlink()
    cache.put("two", b"payload of two")
    entry_of(cache).write_bytes(data)
    assert cache.get("two") is None


def test_folder_is_private_to_its_owner(cache):
    """Folder and files have no permissions for group and others."""
    cache.put("key", b"payload")
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(entry_of(cache).stat().st_mode) == 0o600


def test_least_recently_used_entry_is_removed_first(cache):
    """Above the size limit, the least recently used entries are removed."""
    cache.max_bytes = 10 * 1100
    for k in range(10):
        cache.put(str(k), bytes(1000))
        path = cache.path(str(k))
        os.utime(path, (k, k))
    assert cache.get("0") is not None  # used now, so 1 is the least recently used
    cache.put("10", bytes(1000))
    remaining = {k for k in range(11) if cache.path(str(k)).exists()}
    assert remaining == {0, 3, 4, 5, 6, 7, 8, 9, 10}


def test_newest_entry_is_kept_above_the_limit(cache):
    """The newest entry stays, even if it exceeds the limit alone."""
    cache.max_bytes = 10
    cache.put("old", bytes(1000))
    os.utime(entry_of(cache), (1, 1))
    cache.put("new", bytes(1000))
    assert cache.get("new") is not None
    assert cache.get("old") is None


def test_stale_partial_files_are_removed(cache):
    """Partial files are removed after an hour, not before."""
    cache.put("key", b"payload")
    old, young = cache.folder / "a.part", cache.folder / "b.part"
    old.write_bytes(b"half")
    young.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    cache.put("key", b"payload")
    assert not old.exists()
    assert young.exists()


def test_disabled_cache_stores_nothing(tmp_path, monkeypatch):
    """`TMI_CACHE=off` disables the cache."""
    monkeypatch.setenv("TMI_CACHE", "off")
    cache = ContentCache("things")
    assert (cache.enabled, cache.put("key", b"payload"), cache.get("key")) == (False, False, None)


def test_unwritable_folder_returns_false(tmp_path, monkeypatch):
    """If the folder cannot be written, `put` returns False and raises nothing."""
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("TMI_CACHE", str(tmp_path / "file"))
    cache = ContentCache("things")
    assert (cache.enabled, cache.put("key", b"payload"), cache.get("key")) == (True, False, None)


def _write_and_read(folder: str, seed: int) -> int:
    """Return how many wrong payloads a process reads while others write the same keys."""
    os.environ["TMI_CACHE"] = folder
    cache, n_wrong = ContentCache("shared", max_bytes=40_000), 0
    for k in range(60):
        key = str((k * 7 + seed) % 9)
        data = cache.get(key)
        n_wrong += data is not None and data != key.encode() * 5000
        cache.put(key, key.encode() * 5000)
    return n_wrong


def test_concurrent_processes_never_read_partial_entries(tmp_path):
    """Processes that share a cache read complete entries or none."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.starmap(_write_and_read, [(str(tmp_path), seed) for seed in range(4)]) == [0, 0, 0, 0]
    assert not list((tmp_path / "shared").glob("*.part"))
