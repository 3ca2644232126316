"""Compiled graphs in the user's cache: used when whole, made anew when not, and never able to change an answer."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest

from tmi.runtime.bundle.reader import Bundle, open_bundle
from tmi.runtime.engines.compiled_cache import KIND, CompiledCache, MappedFile
from tmi.runtime.engines.registry import open_engine
from tmi.runtime.inference.ensemble import run_folds
from tmi.runtime.verification.golden_inputs import GoldenInputs, golden_from_manifest


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def golden(bundle: Bundle) -> GoldenInputs:
    return golden_from_manifest(bundle.manifest).rows([0])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where compiled graphs of a fresh user go."""
    monkeypatch.setenv("TMI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / KIND


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The graphs that were compiled and not taken from the cache."""
    from tmi.runtime.engines.openvino import OpenVinoEngine

    kept, seen = OpenVinoEngine._store, []

    def keep(self, spec, compiled):
        seen.append(spec.name)
        kept(self, spec, compiled)

    monkeypatch.setattr(OpenVinoEngine, "_store", keep)
    return seen


def answer(bundle: Bundle, golden: GoldenInputs, threads: int = 1) -> np.ndarray:
    with open_engine("openvino", bundle, threads=threads) as engine:
        return run_folds(
            engine, bundle.manifest, ct_B1DHW=golden.ct_B1DHW, texts=golden.texts, radiomics_BFR=golden.radiomics_BFR
        )


def test_the_second_start_compiles_nothing_and_answers_the_same(bundle, golden, folder, compilations):
    names = [g.name for g in bundle.manifest.graphs]
    first = answer(bundle, golden)
    assert compilations == names
    compilations.clear()
    np.testing.assert_array_equal(answer(bundle, golden), first)
    assert compilations == []
    answer(bundle, golden, threads=2)
    assert compilations == names, "another number of threads is another compilation"


def test_the_files_are_their_owners_alone(bundle, golden, folder):
    answer(bundle, golden)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(f.stat().st_mode) for f in folder.iterdir()} == {0o600}
    assert len(list(folder.iterdir())) == len(bundle.manifest.graphs)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def emptied(file: Path) -> None:
    os.truncate(file, 0)


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x40  # among the weights
    file.write_bytes(data)


def lengthened(file: Path) -> None:
    with file.open("ab") as stream:
        stream.write(b"x")


@pytest.mark.parametrize("damage", [cut, emptied, flipped, lengthened])
def test_a_damaged_file_is_made_anew_and_changes_no_answer(damage, bundle, golden, folder, compilations):
    first = answer(bundle, golden)
    for file in folder.iterdir():
        damage(file)
    compilations.clear()
    np.testing.assert_array_equal(answer(bundle, golden), first)
    assert len(compilations) == len(bundle.manifest.graphs)
    compilations.clear()
    np.testing.assert_array_equal(answer(bundle, golden), first)
    assert compilations == [], "the files were mended"


def test_a_file_under_another_graphs_name_is_not_taken(bundle, golden, folder, compilations):
    first = answer(bundle, golden)
    one, two = sorted(folder.iterdir())[:2]
    one.write_bytes(two.read_bytes())
    compilations.clear()
    np.testing.assert_array_equal(answer(bundle, golden), first)
    assert len(compilations) == 1


def test_what_openvino_cannot_import_is_compiled(bundle, golden, folder, compilations, monkeypatch):
    first = answer(bundle, golden)
    compilations.clear()
    honest = CompiledCache.open

    def spoilt(self, key):
        mapped = honest(self, key)
        payload = memoryview(bytearray(b"no model" * 9))
        return None if mapped is None else MappedFile(mapping=mapped.mapping, payload=payload)

    with monkeypatch.context() as patch:
        patch.setattr(CompiledCache, "open", spoilt)
        np.testing.assert_array_equal(answer(bundle, golden), first)
    assert len(compilations) == len(bundle.manifest.graphs)


@pytest.mark.parametrize("others", [stat.S_IWGRP, stat.S_IWOTH])
@pytest.mark.parametrize("what", ["the folder", "the files"])
def test_what_others_may_write_is_not_read(others, what, bundle, golden, folder, compilations):
    answer(bundle, golden)
    for path in [folder] if what == "the folder" else list(folder.iterdir()):
        path.chmod(stat.S_IMODE(path.stat().st_mode) | others)
    compilations.clear()
    answer(bundle, golden)
    assert len(compilations) == len(bundle.manifest.graphs)


def test_with_caching_off_nothing_is_kept(bundle, golden, tmp_path, monkeypatch, compilations):
    monkeypatch.setenv("TMI_CACHE", "off")
    monkeypatch.chdir(tmp_path)
    cache = CompiledCache()
    assert (cache.enabled, cache.open("key"), cache.put("key", memoryview(b"data"))) == (False, None, False)
    for _ in range(2):
        compilations.clear()
        answer(bundle, golden)
        assert len(compilations) == len(bundle.manifest.graphs)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_stops_no_prediction(bundle, golden, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TMI_CACHE", str(tmp_path / "file"))
    assert np.isfinite(answer(bundle, golden)).all()


def test_what_was_used_longest_ago_goes_first_and_the_newest_never(folder):
    cache = CompiledCache(max_bytes=300)
    for age, key in enumerate(("a", "b", "c")):
        assert cache.put(key, memoryview(bytes(100)))
        path = cache.path(key)
        if path.exists():
            os.utime(path, (age, age))
    found: dict[str, bool] = {key: cache.open(key) is not None for key in ("a", "b", "c")}
    assert found == {"a": False, "b": True, "c": True}
    assert CompiledCache(max_bytes=10).put("large", memoryview(bytes(100)))
    assert [p.suffix for p in folder.iterdir()] == [".compiled"]
