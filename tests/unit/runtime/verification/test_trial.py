"""The trial of a bundle's graphs in a process that may die."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from factories.paths import ROOT
from factories.planted_faults import reseal
from factories.tmi_command import tmi
from tmi.runtime.bundle.reader import open_bundle
from tmi.runtime.verification import trial
from tmi.runtime.verification.trial import Limits, require_survived_trial, trial_limits
from tmi.toolkit.errors import DamagedError

PUBLISHED = ROOT / "tests" / "unit" / "runtime" / "bundle" / "data" / "tmi-bundle-2"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TMI_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(PUBLISHED / "bundle", tmp_path / "bundle")


def endless(folder: Path, size: int, products: int) -> None:
    """Multiply a matrix of size^2 with itself, again and again, and add what is left of it to the CT features."""
    path = folder / "graphs" / "ct-0.onnx"
    model = onnx.load(path)
    graph, output = model.graph, model.graph.output[0].name
    last = next(n for n in graph.node if output in n.output)
    last.output[0] = "t_old"
    graph.initializer.append(numpy_helper.from_array(np.array([size, size], np.int64), "t_size"))
    nodes = [helper.make_node("ReduceSum", ["t_old"], ["t_sum"], keepdims=1)]
    nodes.append(helper.make_node("Expand", ["t_sum", "t_size"], ["t_0"]))
    nodes += [helper.make_node("MatMul", [f"t_{n}", "t_0"], [f"t_{n + 1}"]) for n in range(products)]
    nodes.append(helper.make_node("ReduceMean", [f"t_{products}"], ["t_mean"], keepdims=1))
    graph.node.extend([*nodes, helper.make_node("Add", ["t_old", "t_mean"], [output])])
    onnx.save(model, path)
    reseal(folder)


def test_valid_bundle_passes_once(folder, monkeypatch):
    """A valid bundle is tried at its first opening; then the record of the self-test stands for it."""
    bundle, runs = open_bundle(folder), []
    original = trial._run_child
    monkeypatch.setattr(trial, "_run_child", lambda *words: runs.append(words[1]) or original(*words))
    words = ["predict", PUBLISHED / "case", "--bundle", folder, "--engine", "onnx", "--threads", 1]
    assert tmi(*words).code == 0
    assert tmi(*words).code == 0
    assert runs == ["onnx"]
    require_survived_trial(bundle, "onnx")
    assert runs == ["onnx"]


@pytest.mark.long
@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_graph_that_does_not_end_is_rejected(folder, engine, monkeypatch):
    """A graph that computes on and on ends with an error after its processor time, in the child alone."""
    endless(folder, 4096, 60)
    monkeypatch.setattr(trial, "trial_limits", lambda *_: Limits(memory_bytes=2**32, cpu_seconds=4))
    outcome = tmi("predict", PUBLISHED / "case", "--bundle", folder, "--engine", engine, "--threads", 1)
    assert outcome.code == 6, outcome.err
    assert f"engine {engine} computes for more than 4 s" in outcome.err


def test_graph_that_takes_all_memory_is_rejected(folder, monkeypatch):
    """The child is ended when it takes more memory than the limit."""
    endless(folder, 8192, 8)
    monkeypatch.setattr(trial, "trial_limits", lambda *_: Limits(memory_bytes=2**28, cpu_seconds=30))
    with pytest.raises(DamagedError, match=r"needs more than 0\.2 GiB"):
        require_survived_trial(open_bundle(folder), "onnx", threads=1)


def test_engine_that_crashes_is_an_error(folder, monkeypatch):
    """A signal that kills the child is reported with its number; `tmi verify` reports it too."""
    real = trial.subprocess.Popen
    crash = ["-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"]
    monkeypatch.setattr(trial.subprocess, "Popen", lambda command, **words: real([command[0], *crash], **words))
    outcome = tmi("verify", folder, "--engine", "onnx")
    assert outcome.code == 6, outcome.err
    assert "engine onnx crashes (signal 11)" in outcome.err


def test_child_ends_with_its_parent(folder):
    """A child that computes is ended within seconds when its parent is killed, far before its limit."""
    endless(folder, 4096, 60)
    code = (
        "import sys; from pathlib import Path; from tmi.runtime.bundle.reader import open_bundle\n"
        "from tmi.runtime.verification import trial\n"
        "limits = trial.Limits(memory_bytes=2**33, cpu_seconds=60)\n"
        "trial._run_child(open_bundle(Path(sys.argv[1])), 'onnx', 1, limits)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(folder)])
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    try:
        child = wait_for(lambda: children.read_text().split())[0]
        wait_for(lambda: int(Path(f"/proc/{child}/stat").read_text().split()[13]) > 100)  # it computes
    finally:
        parent.kill()
        parent.wait()
    wait_for(lambda: has_ended(child))


def has_ended(process: str) -> bool:
    """Whether a process is gone, or a zombie that nobody has waited for yet (field 3 of its stat)."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_for(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """The first true value of a condition."""
    deadline = monotonic() + seconds
    while not (value := condition()):
        assert monotonic() < deadline
        sleep(0.05)
    return value


def test_limits_grow_with_the_network():
    """The limits allow more than a valid network of the paper's size needs, and little to a small one."""
    manifest = open_bundle(PUBLISHED / "bundle").manifest
    small = trial_limits(manifest, "onnx")
    assert small.memory_bytes < 2 * 2**30
    assert small.cpu_seconds < 10
    ct = replace(manifest.config.ct, shape_DHW=(64, 512, 512))
    large = trial_limits(replace(manifest, config=replace(manifest.config, ct=ct)), "onnx")
    assert large.memory_bytes > 7 * 2**30
    assert large.cpu_seconds > 300
