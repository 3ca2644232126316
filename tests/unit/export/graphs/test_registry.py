"""Tests of the table of exporters."""

from __future__ import annotations

import importlib.util

import pytest

from tmi.export.graphs.registry import EXPORTERS, INT8, require_exporter
from tmi.runtime.engines.registry import ENGINES
from tmi.toolkit.errors import UnavailableError, UsageError

PLANS = ("trt", "trt-rtx", "torch-trt")
GRAPH_EXPORTERS = [name for name in EXPORTERS if name not in (*PLANS, INT8)]


@pytest.mark.parametrize("name", GRAPH_EXPORTERS)
def test_graph_exporter_has_writer_reader_and_engines(name):
    """A graph exporter's writer and reader can be imported, and its engines run its artefact kind."""
    spec = require_exporter(name)
    assert callable(spec.function("writer"))
    assert callable(spec.function("reader"))
    assert {ENGINES[engine].artefact for engine in spec.engines} == {spec.artefact}


@pytest.mark.parametrize("name", PLANS)
def test_plan_exporter_is_validated_on_its_own_engine(name):
    """A plan exporter has a build function instead of writer and reader, and one GPU engine of its name."""
    spec = require_exporter(name)
    assert (spec.writer, spec.reader) == (None, None)
    assert callable(spec.function("plan"))
    assert ENGINES[name].gpu
    assert ENGINES[name].artefact == spec.artefact
    assert spec.engines == (name,)


def test_unknown_exporter_lists_known_ones():
    """The fix of an unknown exporter's error lists every exporter."""
    with pytest.raises(UsageError, match="unknown engine 'tensorflow' to export") as caught:
        require_exporter("tensorflow")
    assert caught.value.fix == "choose among onnx, torchscript, onnx-int8, trt, trt-rtx, torch-trt"


def test_missing_package_is_named_with_its_extra(monkeypatch):
    """A missing package is exit code 5, and the fix installs the extra that contains it."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(UnavailableError, match="--engine onnx needs the package onnxscript") as caught:
        require_exporter("onnx")
    assert caught.value.fix == "pip install 'tmi-clnet[export]'"
    assert caught.value.exit_code == 5
