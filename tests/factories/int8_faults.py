"""Faults planted into the quantisation of the encoders: scales, zero points, calibration cases."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from factories.cached_traces import use_cached_traces
from factories.nano import nano
from factories.planted_faults import Fault, Workbench
from factories.random_run import write_random_run
from factories.tmi_command import CommandResult, tmi


@cache
def _exported(bundle: Path) -> Path:
    """Folder with a cohort, a run that was trained on it, and its export as ONNX; `bundle` gives the traces."""
    from tmi.toolkit.synthetic.cohort import make_cohort

    folder = Path(tempfile.mkdtemp(prefix="int8-", dir=bundle.parent))
    make_cohort(folder / "cohort", cases=8, seed=7, jobs=1)
    write_random_run(folder / "run", nano(), folds=2, seed=5, cohort=folder / "cohort")
    with pytest.MonkeyPatch.context() as patch:
        use_cached_traces(patch, bundle)
        exported = tmi("export", folder / "run", "--engine", "onnx", "--out", folder / "bundle")
    assert exported.code == 0, exported.err
    return folder


def add_int8(bench: Workbench) -> CommandResult:
    """Add INT8 graphs to a copy of a valid bundle."""
    source = _exported(bench.bundle)
    out = bench.folder / "bundle"
    shutil.copytree(source / "bundle", out)
    words = ("export", source / "run", "--add", "--precision", "int8", "--calibration", source / "cohort", "--out", out)
    outcome = tmi(*words)
    shutil.rmtree(out)  # the bundle that was there before
    return outcome


def _in_file(change: Callable[[ModelProto], None]) -> Callable[[Workbench, pytest.MonkeyPatch], CommandResult]:
    """Change the quantised graph after the search."""

    def run(bench: Workbench, patch: pytest.MonkeyPatch) -> CommandResult:
        from tmi.export.quantization import int8_graphs

        original = int8_graphs.search_layers

        def changed(*args, **options):
            plan = original(*args, **options)
            change(plan.model)
            return plan

        patch.setattr(int8_graphs, "search_layers", changed)
        return add_int8(bench)

    return run


def _change_first(model: ModelProto, ending: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = next(t for t in model.graph.initializer if t.name.endswith(ending))
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))


def _wrong_scale(model: ModelProto) -> None:
    _change_first(model, ".scale", lambda scale: (scale * np.float32(1.01)).astype(np.float32))


def _zero_point(model: ModelProto) -> None:
    _change_first(model, ".zero_point", lambda zero: (zero + 1).astype(zero.dtype))


def _constant_volume(bench: Workbench, patch: pytest.MonkeyPatch) -> CommandResult:
    from tmi.export.quantization import calibration_cases

    original = calibration_cases.prepare_case

    def constant(*args, **options):
        prepared = original(*args, **options)
        return replace(prepared, ct_1DHW=np.zeros_like(prepared.ct_1DHW))

    patch.setattr(calibration_cases, "prepare_case", constant)
    return add_int8(bench)


def _saturated(bench: Workbench, patch: pytest.MonkeyPatch) -> CommandResult:
    from tmi.export.quantization import int8_graphs

    original = int8_graphs.largest_magnitudes

    def halved(*args, **options):
        first, *others = original(*args, **options).items()
        return {first[0]: first[1] / 2, **dict(others)}

    patch.setattr(int8_graphs, "largest_magnitudes", halved)
    return add_int8(bench)


def _held_out(bench: Workbench, patch: pytest.MonkeyPatch) -> CommandResult:
    from tmi.export.quantization import calibration_cases

    def held_out(run, partition, fingerprint, count):
        return {case: tuple(e.name for e in partition.encoders if e.role == "ct") for case in run.folds[0].test}

    patch.setattr(calibration_cases, "choose_cases", held_out)
    return add_int8(bench)


def _fault(name: str, plant, reason: str) -> Fault:
    return Fault(name=name, where="export", plant=plant, code=4, reason=reason, quick=False)


INT8_FAULTS = (
    _fault("a wrong scale in an INT8 graph", _in_file(_wrong_scale), "the scale of .* is 1.01 times"),
    _fault("a zero point off by one", _in_file(_zero_point), "the zero point of .* is .*int8 1, not 0"),
    _fault("INT8 calibrated on constant volumes", _constant_volume, "calibration volumes are constant"),
    _fault("a layer saturated in INT8", _saturated, "the stated range of .* is 0.5 times"),
    _fault("INT8 calibrated on held-out cases", _held_out, "calibrated on cases that a fold was not trained on: ct-0"),
)
