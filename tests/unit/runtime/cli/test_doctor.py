"""Tests of `tmi doctor`."""

from __future__ import annotations

import re
from importlib.metadata import metadata

from factories.paths import ROOT
from factories.tmi_command import tmi
from tmi.runtime.cli import doctor
from tmi.runtime.engines import registry

PUBLISHED = ROOT / "tests" / "unit" / "runtime" / "bundle" / "data" / "tmi-bundle-2"


def test_doctor_lists_every_engine_and_why_it_does_not_run(monkeypatch):
    """An engine is ready, lacks its package, or lacks the GPU; the installed package has its version."""
    monkeypatch.setattr(registry, "find_gpu", lambda: None)
    outcome = tmi("doctor")
    assert outcome.code == 0
    lines = dict(re.findall(r"^  (\S+) +(.+)$", outcome.out.partition("extras:")[0], re.M))
    assert list(lines) == list(registry.ENGINES)
    assert re.fullmatch(r"ready \(onnxruntime \d[\d.]+\)", lines["onnx"])
    assert lines["onnx-cuda"] == registry.NO_GPU
    assert all(spec.gpu is False or lines[name].startswith("ready") is False for name, spec in registry.ENGINES.items())


def test_doctor_with_a_bundle_names_missing_graphs():
    """With a bundle, an engine without graphs in it is not ready, although its package is."""
    engines = tmi("doctor", "--bundle", PUBLISHED / "bundle", "--json").document["engines"]
    assert engines["onnx"] == "ready"
    assert engines["torchscript"] == "the bundle holds no torchscript graphs"


def test_machine_without_an_engine_ends_with_5(monkeypatch):
    """If no engine runs here, the exit code is that of an unavailable engine, and every reason is listed."""
    monkeypatch.setattr(registry, "installed", lambda name: False)
    outcome = tmi("doctor", "--json")
    assert outcome.code == 5
    assert outcome.document["engines"]["onnx"] == "onnxruntime is not installed"


def test_missing_packages_of_an_extra_are_listed(monkeypatch):
    """The packages of an extra, and of the extras that it names, and the command that installs them."""
    lines = ["numpy>=2", "nosuch>=1; extra == 'sign'", "tmi-clnet[sign]; extra == 'train'", "numpy; extra == 'train'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: [*lines, "other; extra == 'dev'"])
    outcome = tmi("doctor")
    assert "  train            not installed: nosuch (tmi pretrain-text, tmi train" in outcome.out
    assert "pip install 'tmi-clnet[train]'" in outcome.out
    assert set(tmi("doctor", "--json").document["extras"]) == {"sign", "train"}


def test_extras_are_those_of_the_distribution():
    """Every extra that a user installs is listed."""
    extras = set(metadata(doctor.DISTRIBUTION).get_all("Provides-Extra") or ())
    assert set(doctor._extras()) == extras - doctor.NOT_SHOWN
