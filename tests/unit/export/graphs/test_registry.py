"""The table of exporters, and what each name answers where it cannot work."""

from __future__ import annotations

import importlib.util

import pytest

from tmi.export.graphs.registry import EXPORTERS, import_target, require_exporter
from tmi.runtime.engines.registry import ENGINES
from tmi.toolkit.errors import UnavailableError, UsageError

PLANS = ("trt", "trt-rtx", "torch-trt")
WORKING = [name for name in EXPORTERS if name not in PLANS]


@pytest.mark.parametrize("name", WORKING)
def test_every_working_exporter_names_a_writer_a_reader_and_engines_of_its_artefact(name):
    spec = require_exporter(name)
    assert callable(import_target(spec.writer))
    assert callable(import_target(spec.reader))
    assert {ENGINES[engine].artefact for engine in spec.engines} == {spec.artefact}


@pytest.mark.parametrize("name", PLANS)
def test_every_plan_is_built_by_a_package_and_judged_on_the_engine_of_its_name(name):
    spec = require_exporter(name)
    assert (spec.writer, spec.reader) == (None, None)
    assert callable(import_target(spec.plan))
    assert ENGINES[name].gpu
    assert ENGINES[name].artefact == spec.artefact
    assert spec.engines == (name,)


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
