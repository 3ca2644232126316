"""Cache of encoder features: unchanged inputs reuse them; changed inputs and damaged entries are computed."""

from __future__ import annotations

import json
import shutil
import stat

import pytest

from factories.tmi_command import tmi
from tmi.runtime import Predictor


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Folder of the entries in a cache that only this test uses."""
    monkeypatch.setenv("TMI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "embeddings"


@pytest.fixture
def ask(tiny_bundle, kept):
    def run(cases, **options):
        with Predictor.open(tiny_bundle, engine="onnx", threads=1, verify=False, reuse=True) as predictor:
            return predictor.predict(cases, **options)

    return run


def test_cached_features_give_the_same_prediction(ask, predictor, good_cases, kept):
    """Reused features change no probability, and their files are private."""
    fresh = predictor.predict(good_cases[:2])
    first, second = ask(good_cases[:2], batch=2), ask(good_cases[:3], batch=3)
    assert [a.reused for a in first] == [(), ()]
    assert [a.reused for a in second] == [("ct", "text"), ("ct", "text"), ()]
    for one, two, plain in zip(first, second, fresh, strict=False):
        assert one.probability == pytest.approx(plain.probability, abs=1e-6)
        assert two.probability == pytest.approx(plain.probability, abs=1e-6)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in kept.iterdir())
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700


def test_changed_text_reuses_the_ct_features(ask, good_cases, tmp_path):
    """The key covers one branch, so another report leaves the CT's features valid."""
    ask(good_cases[0])
    changed = shutil.copytree(good_cases[0], tmp_path / "changed")
    record = json.loads((changed / "clinical.json").read_text())
    (changed / "clinical.json").write_text(json.dumps({**record, "report": "A large spleen."}))
    assert ask(changed)[0].reused == ("ct",)


def test_damaged_entry_is_computed_again(ask, good_cases, kept):
    """A flipped bit is detected and never used."""
    (before,) = ask(good_cases[0])
    for path in kept.iterdir():
        data = bytearray(path.read_bytes())
        data[-1] ^= 64
        path.write_bytes(data)
    (after,) = ask(good_cases[0])
    assert (after.reused, after.probability) == ((), before.probability)


def test_nothing_is_cached_by_default(tiny_bundle, good_cases, kept):
    """Features are stored with --reuse only."""
    words = ("predict", good_cases[0], "--bundle", tiny_bundle, "--engine", "onnx", "--no-verify", "--json")
    assert tmi(*words).document["results"][0]["reused"] == []
    assert not kept.exists()
    assert "cache of embeddings: 0 found" in tmi(*words, "--reuse").err
    assert sorted(tmi(*words, "--reuse").document["results"][0]["reused"]) == ["ct", "text"]
