"""What do five folds cost if they share a frozen text encoder?

The benchmark compares five CT encoders, five fusions and one text encoder with one of each: the time of each stage, the
number of runs of the text encoder, and peak memory.
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
def five_folds(size: Size, cache_folder: Path) -> Path:
    return bench_inputs.bundle(size, folds=FOLDS, cache=cache_folder)


@pytest.fixture(scope="module")
def runs() -> Iterator[Counter[str]]:
    """Graph name -> number of runs."""
    counted: Counter[str] = Counter()
    original = GraphEngine.run

    def counting(self: GraphEngine, graph: str, inputs: Any) -> Any:
        counted[graph] += 1
        return original(self, graph, inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GraphEngine, "run", counting)
        yield counted


def test_five_folds_against_one(record, one_fold: Path, five_folds: Path, case: Path, runs: Counter[str]) -> None:
    predictions: dict[str, list[Prediction]] = {"one fold": [], "five folds": []}
    with Predictor.open(one_fold) as one, Predictor.open(five_folds) as five:

        def predict_with(name: str, predictor: Predictor) -> Any:
            def predict() -> None:
                (prediction,) = predictor.predict(case)
                assert isinstance(prediction, Prediction), prediction
                predictions[name].append(prediction)

            return predict

        pipelines = {"one fold": predict_with("one fold", one), "five folds": predict_with("five folds", five)}
        record.paired(pipelines, against="one fold", repeats=3)
        runs.clear()
        five.predict(case)
    texts = sum(count for graph, count in runs.items() if graph.startswith("text"))
    record.note("runs of a text encoder a case", texts)
    record.note("runs of a CT encoder a case", sum(n for graph, n in runs.items() if graph.startswith("ct")))
    for stage in ("ct", "text", "fusion"):
        pairs = zip(predictions["five folds"][1:], predictions["one fold"][1:], strict=True)
        ratio = statistics.median(a.seconds[stage] / b.seconds[stage] for a, b in pairs)
        record.note(f"{stage}: five folds / one", ratio, "x")


def test_memory_of_five_folds(record, one_fold: Path, five_folds: Path, case: Path) -> None:
    """Compare the peak with one fold's activations and all weights."""
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
    excess = peaks["five folds"] - activations - weights["five folds"]
    record.note("over one fold's activations and all weights", excess, "GiB")
