"""The table of exporters, and what each name answers where it cannot work."""

from __future__ import annotations

import importlib.util

import pytest

from factories.tmi_command import tmi
from tmi.export.exporters import EXPORTERS, load, require_exporter
from tmi.runtime.engine import ENGINES
from tmi.toolkit.errors import UnavailableError, UsageError

COMING = ("trt", "trt-rtx", "torch-trt")
WORKING = [name for name in EXPORTERS if name not in COMING]


@pytest.mark.parametrize("name", WORKING)
def test_every_working_exporter_names_a_writer_a_reader_and_engines_of_its_artefact(name):
    spec = require_exporter(name)
    assert callable(load(spec.writer))
    assert callable(load(spec.reader))
    assert {ENGINES[engine].artefact for engine in spec.engines} == {spec.artefact}


@pytest.mark.parametrize("name", COMING)
def test_an_exporter_that_is_still_to_come_says_what_is_missing_and_what_to_do_meanwhile(name, tmp_path):
    outcome = tmi("export", "--engine", name, cwd=tmp_path)
    assert outcome.code == 5
    assert f"error: this version of tmi writes no {name} engine yet; it will need the package" in outcome.err
    assert "an NVIDIA GPU with its driver" in outcome.err
    assert "fix: export with --engine onnx meanwhile: that bundle runs on OpenVINO and ONNX Runtime" in outcome.err


def test_an_unknown_exporter_lists_the_known_ones():
    with pytest.raises(UsageError, match="unknown engine 'tensorflow' to export") as caught:
        require_exporter("tensorflow")
    assert caught.value.fix == "choose among onnx, torchscript, trt, trt-rtx, torch-trt"


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(UnavailableError, match="--engine onnx needs the package onnxscript") as caught:
        require_exporter("onnx")
    assert caught.value.fix == "pip install 'tmi-clnet[export]'"
    assert caught.value.exit_code == 5
