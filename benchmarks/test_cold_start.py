"""How much later than a warm one is the first answer of a new process?

`tmi predict` from the shell's point of view (start to end of the process) against the same prediction in a process that
is warm, in turn. A first process fills the caches and is told apart: it also checks the bundle's first opening.
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
        roads = {
            "new process": lambda: processes.predict([case], one_fold),
            "warm": lambda: predictor.predict(case),
        }
        record.paired(roads, against="warm")
    late = [a - b for a, b in zip(*(record.metrics[f"{n} s"]["rounds"] for n in roads), strict=True)]
    record.note("new process - warm", statistics.median(late), "s", rounds=late)


def test_imports_of_a_first_answer(record, one_fold: Path, case: Path) -> None:
    """Packages that a machine that serves must not need."""
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

    def ends() -> dict[str, list[str]]:
        found = {}
        for engine in plan.engines:
            with BenchmarkWorker(plan, engine) as worker:
                found[engine] = worker.finish()["heavy"]
        return found

    heavy = record.once(ends)
    record.note("heavy packages imported", sum(map(len, heavy.values())), "", names=heavy)
