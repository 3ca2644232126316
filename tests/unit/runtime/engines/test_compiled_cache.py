"""Cache of compiled graphs: used if intact, compiled again if not, and without effect on outputs."""

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
    """Folder of the compiled graphs of a user with an empty cache."""
    monkeypatch.setenv("TMI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / KIND


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the graphs that were compiled instead of loaded from the cache."""
    from tmi.runtime.engines.openvino import OpenVinoEngine

    original, compiled_names = OpenVinoEngine._store, []

    def store(self, spec, compiled):
        compiled_names.append(spec.name)
        original(self, spec, compiled)

    monkeypatch.setattr(OpenVinoEngine, "_store", store)
    return compiled_names


def ensemble_logits(bundle: Bundle, golden: GoldenInputs, threads: int = 1) -> np.ndarray:
    """Logits [B, F, K] of the golden inputs."""
    with open_engine("openvino", bundle, threads=threads) as engine:
        return run_folds(
            engine, bundle.manifest, ct_B1DHW=golden.ct_B1DHW, texts=golden.texts, radiomics_BFR=golden.radiomics_BFR
        )


def test_second_start_uses_the_cache(bundle, golden, folder, compilations):
    """A second start compiles nothing and gives the same outputs; another thread count is another compilation."""
    names = [g.name for g in bundle.manifest.graphs]
    first = ensemble_logits(bundle, golden)
    assert compilations == names
    compilations.clear()
    np.testing.assert_array_equal(ensemble_logits(bundle, golden), first)
    assert compilations == []
    ensemble_logits(bundle, golden, threads=2)
    assert compilations == names, "another number of threads is another compilation"


def test_files_are_private_to_the_user(bundle, golden, folder):
    """Folder and files are accessible to their owner only."""
    ensemble_logits(bundle, golden)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(f.stat().st_mode) for f in folder.iterdir()} == {0o600}
    assert len(list(folder.iterdir())) == len(bundle.manifest.graphs)


def truncate_half(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def truncate_all(file: Path) -> None:
    os.truncate(file, 0)


def flip_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x40  # in the weights
    file.write_bytes(data)


def append_byte(file: Path) -> None:
    with file.open("ab") as stream:
        stream.write(b"x")


@pytest.mark.parametrize("damage", [truncate_half, truncate_all, flip_bit, append_byte])
def test_damaged_file_is_compiled_again(damage, bundle, golden, folder, compilations):
    """A damaged file is replaced by a new compilation with the same outputs."""
    first = ensemble_logits(bundle, golden)
    for file in folder.iterdir():
        damage(file)
    compilations.clear()
    np.testing.assert_array_equal(ensemble_logits(bundle, golden), first)
    assert len(compilations) == len(bundle.manifest.graphs)
    compilations.clear()
    np.testing.assert_array_equal(ensemble_logits(bundle, golden), first)
    assert compilations == [], "the damaged files were replaced"


def test_file_of_another_graph_is_not_used(bundle, golden, folder, compilations):
    """A file copied to another graph's name is not used."""
    first = ensemble_logits(bundle, golden)
    target, source = sorted(folder.iterdir())[:2]
    target.write_bytes(source.read_bytes())
    compilations.clear()
    np.testing.assert_array_equal(ensemble_logits(bundle, golden), first)
    assert len(compilations) == 1


def test_unimportable_file_is_compiled_again(bundle, golden, folder, compilations, monkeypatch):
    """A file that OpenVINO cannot import is replaced by a new compilation."""
    first = ensemble_logits(bundle, golden)
    compilations.clear()
    original = CompiledCache.open

    def corrupted(self, key):
        mapped = original(self, key)
        payload = memoryview(bytearray(b"no model" * 9))
        return None if mapped is None else MappedFile(mapping=mapped.mapping, payload=payload)

    with monkeypatch.context() as patch:
        patch.setattr(CompiledCache, "open", corrupted)
        np.testing.assert_array_equal(ensemble_logits(bundle, golden), first)
    assert len(compilations) == len(bundle.manifest.graphs)


@pytest.mark.parametrize("others", [stat.S_IWGRP, stat.S_IWOTH])
@pytest.mark.parametrize("what", ["the folder", "the files"])
def test_files_writable_by_others_are_not_read(others, what, bundle, golden, folder, compilations):
    """Folders and files that other users may write are ignored."""
    ensemble_logits(bundle, golden)
    for path in [folder] if what == "the folder" else list(folder.iterdir()):
        path.chmod(stat.S_IMODE(path.stat().st_mode) | others)
    compilations.clear()
    ensemble_logits(bundle, golden)
    assert len(compilations) == len(bundle.manifest.graphs)


def test_caching_off_stores_nothing(bundle, golden, tmp_path, monkeypatch, compilations):
    """With `TMI_CACHE=off` nothing is stored and nothing is read."""
    monkeypatch.setenv("TMI_CACHE", "off")
    monkeypatch.chdir(tmp_path)
    cache = CompiledCache()
    assert (cache.enabled, cache.open("key"), cache.put("key", memoryview(b"data"))) == (False, None, False)
    for _ in range(2):
        compilations.clear()
        ensemble_logits(bundle, golden)
        assert len(compilations) == len(bundle.manifest.graphs)
    assert not list(tmp_path.iterdir())


def test_unwritable_cache_does_not_stop_predictions(bundle, golden, tmp_path, monkeypatch):
    """A cache folder that cannot be created does not stop a prediction."""
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TMI_CACHE", str(tmp_path / "file"))
    assert np.isfinite(ensemble_logits(bundle, golden)).all()


def test_least_recently_used_files_are_evicted(folder):
    """Above the size limit the least recently used files are removed, the newest one never."""
    cache = CompiledCache(max_bytes=300)
    for age, key in enumerate(("a", "b", "c")):
        assert cache.put(key, memoryview(bytes(100)))
        path = cache.path(key)
        if path.exists():
            os.utime(path, (age, age))
    present: dict[str, bool] = {key: cache.open(key) is not None for key in ("a", "b", "c")}
    assert present == {"a": False, "b": True, "c": True}
    assert CompiledCache(max_bytes=10).put("large", memoryview(bytes(100)))
    assert [p.suffix for p in folder.iterdir()] == [".compiled"]
