"""What do five folds cost, when they share a frozen text encoder?

Five CT encoders, five fusions, one text encoder, against one of each: the time of each stage in turn, how often the
text encoder runs, and peak memory.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bench_inputs
from bench_inputs import Size
from tmi.runtime import Prediction, Predictor
from tmi.runtime.benchmark.benchmark import BenchmarkPlan, BenchmarkWorker
from tmi.runtime.bundle.reader import open_bundle
from tmi.runtime.cli.bench_worker import WORKER
from tmi.runtime.engines.graph_engine import GraphEngine
from tmi.toolkit.cases.case import Case

GIB = 2**30
FOLDS = 5


@pytest.fixture(scope="module")
def five_folds(size: Size, kept: Path) -> Path:
    return bench_inputs.bundle(size, folds=FOLDS, kept=kept)


@pytest.fixture(scope="module")
def runs() -> Iterator[Counter[str]]:
    """How often each graph was run, by its name."""
    counted: Counter[str] = Counter()
    plain = GraphEngine.run

    def counting(self: GraphEngine, graph: str, inputs: Any) -> Any:
        counted[graph] += 1
        return plain(self, graph, inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GraphEngine, "run", counting)
        yield counted


def test_five_folds_against_one(record, one_fold: Path, five_folds: Path, case: Path, runs: Counter[str]) -> None:
    answers: dict[str, list[Prediction]] = {"one fold": [], "five folds": []}
    with Predictor.open(one_fold) as one, Predictor.open(five_folds) as five:

        def road(name: str, predictor: Predictor) -> Any:
            def once() -> None:
                (answer,) = predictor.predict(case)
                assert isinstance(answer, Prediction), answer
                answers[name].append(answer)

            return once

        roads = {"one fold": road("one fold", one), "five folds": road("five folds", five)}
        record.paired(roads, against="one fold", repeats=3)
        runs.clear()
        five.predict(case)
    texts = sum(count for graph, count in runs.items() if graph.startswith("text"))
    record.note("runs of a text encoder a case", texts)
    record.note("runs of a CT encoder a case", sum(n for graph, n in runs.items() if graph.startswith("ct")))
    for stage in ("ct", "text", "fusion"):
        pairs = zip(answers["five folds"][1:], answers["one fold"][1:], strict=True)
        gain = statistics.median(a.seconds[stage] / b.seconds[stage] for a, b in pairs)
        record.note(f"{stage}: five folds / one", gain, "x")


def test_memory_of_five_folds(record, one_fold: Path, five_folds: Path, case: Path) -> None:
    """Against one fold's activations, all weights and 1.5 GB."""
    weights, peaks = {}, {}

    def measure() -> None:
        for name, folder in (("one fold", one_fold), ("five folds", five_folds)):
            bundle = open_bundle(folder)
            graphs = [p for p in bundle.manifest.files if p.startswith("graphs/")]
            weights[name] = sum(bundle.manifest.files[p].bytes for p in graphs) / GIB
            plan = BenchmarkPlan(
                worker=WORKER,
                bundle=bundle,
                engines=("auto",),
                cases=(Case(folder=case, case_id=case.name),),
                repeats=1,
            )
            with BenchmarkWorker(plan, "auto") as worker:
                worker.predict([0])
                peaks[name] = worker.finish()["peak_bytes"] / GIB

    record.once(measure)
    for name in peaks:
        record.note(f"peak, {name}", peaks[name], "GiB")
        record.note(f"weights, {name}", weights[name], "GiB")
    activations = peaks["one fold"] - weights["one fold"]
    over = peaks["five folds"] - activations - weights["five folds"]
    record.note("over one fold's activations and all weights", over, "GiB")
