"""How much memory does an engine take, and does it grow with the cohort?

The benchmark records the peak resident memory of a new process by the kernel's accounting.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tmi.runtime.benchmark.benchmark import BenchmarkPlan, BenchmarkWorker, choose_engines
from tmi.runtime.bundle.reader import open_bundle
from tmi.runtime.cli.bench_worker import WORKER
from tmi.toolkit.cases.case import Case

GIB = 2**30
LENGTHS = (2, 8)


def peak_gib(plan: BenchmarkPlan, engine: str, cases: int) -> float:
    """Peak memory of a process that predicted a cohort of `cases` cases, in GiB."""
    with BenchmarkWorker(plan, engine) as worker:
        worker.predict(range(cases))
        return float(worker.finish()["peak_bytes"]) / GIB


@pytest.fixture(scope="module")
def plan(one_fold: Path, cohort: list[Path]) -> BenchmarkPlan:
    bundle = open_bundle(one_fold)
    cases = tuple(Case(folder=c, case_id=c.name) for c in cohort)
    return BenchmarkPlan(worker=WORKER, bundle=bundle, engines=choose_engines((), bundle)[0], cases=cases, repeats=1)


def test_peak_memory_of_each_engine(record, plan: BenchmarkPlan) -> None:
    weights = sum(f.bytes for name, f in plan.bundle.manifest.files.items() if name.startswith("graphs/"))
    record.note("graphs in the bundle", weights / GIB, "GiB")
    peaks = record.once(lambda: {engine: peak_gib(plan, engine, 1) for engine in plan.engines})
    for engine, peak in peaks.items():
        record.note(engine, peak, "GiB")


def test_memory_does_not_grow_with_a_cohort(record, plan: BenchmarkPlan) -> None:
    engine = plan.engines[0]
    peaks = record.once(lambda: {n: peak_gib(plan, engine, n) for n in LENGTHS})
    for n, peak in peaks.items():
        record.note(f"{engine}, {n} cases", peak, "GiB")
    record.note(f"{LENGTHS[1]} cases / {LENGTHS[0]} cases", peaks[LENGTHS[1]] / peaks[LENGTHS[0]], "x")
