"""How much longer does a prediction take in a new process than in a warm one?

The benchmark compares `tmi predict`, from start to end of its process, with the same prediction in a warm process, in
turn. The first process fills the caches and runs the startup self-test; its time is recorded separately.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import processes
from tmi.runtime import Predictor


def test_cold_start(record, one_fold: Path, case: Path) -> None:
    first = processes.predict([case], one_fold)
    record.note("first process on this machine", first.seconds, "s")
    with Predictor.open(one_fold) as predictor:
        predictions = {
            "new process": lambda: processes.predict([case], one_fold),
            "warm": lambda: predictor.predict(case),
        }
        record.paired(predictions, against="warm")
    delays = [a - b for a, b in zip(*(record.metrics[f"{n} s"]["rounds"] for n in predictions), strict=True)]
    record.note("new process - warm", statistics.median(delays), "s", rounds=delays)


def test_imports_of_a_first_answer(record, one_fold: Path, case: Path) -> None:
    """Count heavy packages, such as torch, that a process imports for its first prediction."""
    from tmi.runtime.benchmark.benchmark import BenchmarkPlan, BenchmarkWorker
    from tmi.runtime.bundle.reader import open_bundle
    from tmi.runtime.cli.bench_worker import WORKER
    from tmi.toolkit.cases.case import Case

    plan = BenchmarkPlan(
        worker=WORKER,
        bundle=open_bundle(one_fold),
        engines=("onnx", "openvino"),
        cases=(Case(folder=case, case_id=case.name),),
        repeats=1,
    )

    def heavy_imports() -> dict[str, list[str]]:
        packages = {}
        for engine in plan.engines:
            with BenchmarkWorker(plan, engine) as worker:
                packages[engine] = worker.finish()["heavy"]
        return packages

    heavy = record.once(heavy_imports)
    record.note("heavy packages imported", sum(map(len, heavy.values())), "", names=heavy)
