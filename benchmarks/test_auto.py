"""Does `--engine auto` take the quickest engine?

The engines are timed anew, as at the first opening on a machine. Then all that `auto` selects from run the CT encoder
in turn, in one process. The CT encoder of size `middle` takes nearly all of a prediction's time, as at full size.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

import bench_inputs
from bench_inputs import SIZES
from recorder import Recorder
from tmi.runtime import Predictor
from tmi.runtime.bundle.reader import open_bundle
from tmi.runtime.engines.registry import Engine, open_engine
from tmi.runtime.engines.selection import timed_engines
from tmi.runtime.verification.engine_timing import dominating_graph
from tmi.runtime.verification.timing_process import made_up_inputs

ROUNDS = 15
"""Rounds of short passes; single ones of a few milliseconds vary widely."""


def compare_with_quickest(record: Recorder, folder: Path) -> None:
    """Record how many times the quickest engine's seconds the engine takes that `auto` selects."""
    bundle = open_bundle(folder)
    with Predictor.open(bundle) as predictor:
        chosen, reason = predictor.engine_record.name, predictor.engine_record.reason
    graph = dominating_graph(bundle.manifest)
    inputs, alone = made_up_inputs(graph), replace(bundle, manifest=replace(bundle.manifest, graphs=(graph,)))
    with ExitStack() as stack:
        engines = {name: stack.enter_context(open_engine(name, alone)) for name in timed_engines(bundle)}

        def forward(engine: Engine) -> object:
            return lambda: engine.run(graph.name, inputs)

        record.paired({name: forward(engine) for name, engine in engines.items()}, against=chosen, repeats=ROUNDS)
    seconds = {name: record.metrics[f"{name} s"]["rounds"] for name in engines}
    quickest = min(seconds, key=lambda name: statistics.median(seconds[name]))
    ratios = [a / b for a, b in zip(seconds[chosen], seconds[quickest], strict=True)]
    record.note(
        "auto / quickest engine", statistics.median(ratios), "x", engine=chosen, quickest=quickest, reason=reason
    )


@pytest.mark.parametrize("name", ["small", "middle"])
def test_auto_against_the_quickest(
    record: Recorder, cache_folder: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bench_inputs.bundle(SIZES[name], folds=1, cache=cache_folder)
    monkeypatch.setenv("TMI_CACHE", str(tmp_path))
    compare_with_quickest(record, folder)
