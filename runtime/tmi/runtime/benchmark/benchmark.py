"""Measure time, memory and agreement of a bundle's engines on this machine, for `tmi bench`.

Every engine runs in its own worker process, whose command the caller gives. The first process of an engine fills the
caches and runs the startup self-test. Later processes measure the second start, which is what a user usually waits for.
The last process of each engine stays. All engines then predict the same case in turn, round by round
(`tmi.runtime.benchmark.interleaved_timing` gives the reason), and one computes while the others wait.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from tmi.runtime.benchmark.interleaved_timing import Ratio, quantile, ratio
from tmi.runtime.bundle.check_result import ParityError
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.bundle.signing import Keys, required_keys
from tmi.runtime.engines.precision import largest_error
from tmi.runtime.engines.registry import ENGINES, is_out_of_scope, unavailable_reason
from tmi.toolkit.cases.case import Case
from tmi.toolkit.errors import DamagedError, InputRejectedError, TmiError, UnavailableError, UsageError

REFERENCE = "eager"
"""Engine that the others are compared with, in outputs and times, if it is measured; else the last engine is used."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkPlan:
    """Settings of a measurement."""

    bundle: Bundle
    """Opened bundle, so that damage is reported before anything is measured."""
    key: Keys = None
    """Public keys of which one must have signed the bundle; None: those of `tmi.toml`, if any."""
    engines: tuple[str, ...]
    """Names in `ENGINES`."""
    named: bool = True
    """Whether the engines were requested by name; if not, an engine that cannot predict here is skipped."""
    cases: tuple[Case, ...]
    """Cases, predicted in turn."""
    worker: tuple[str, ...]
    """Arguments of the Python interpreter that start a worker process, for example
    `tmi.runtime.cli.bench_worker.WORKER`.
    """
    repeats: int
    """Rounds of warm predictions."""
    starts: int = 2
    """Number of timed processes of an engine, after the one that fills the caches."""
    batch: int = 1
    """Batch size of the run over all cases."""
    threads: int | None = None
    """Threads of each engine; None: all cores."""


@dataclass(frozen=True, kw_only=True)
class EngineBenchmark:
    """Measurements of one engine. Seconds are wall-clock; a prediction runs from the case's files to its result."""

    engine: str
    """Name in `ENGINES`."""
    package: str
    """Package and version that computed it."""
    precision: str
    """Number format of the computation."""
    threads: int
    """Number of threads."""
    p50_seconds: float
    """Median warm prediction of one case."""
    p95_seconds: float
    """95th percentile of the warm predictions; with few rounds it is close to the slowest one."""
    warm_seconds: tuple[float, ...]
    """Warm prediction of every round."""
    stage_seconds: Mapping[str, float]
    """Median over the rounds of each stage of a prediction, and of their `total`."""
    cases_a_minute: float
    """Throughput of one run over all cases with the plan's batch size."""
    start_seconds: float
    """Seconds from starting a process to its first result, with filled caches; median."""
    first_start_seconds: float
    """The same for the first process, which runs the startup self-test if its result is not cached."""
    peak_bytes: int
    """Peak resident memory of the process."""
    heavy: tuple[str, ...]
    """Which of torch, transformers, MONAI and similar packages the process imported."""
    to_reference: Ratio
    """Warm predictions of this engine divided by those of the reference, round by round."""
    max_difference: float
    """Largest absolute difference of a class probability from the reference, over all cases, the ensemble and every
    fold.
    """
    allowed_difference: float
    """Sum of the declared bounds of the engine and the reference."""
    changed_decisions: tuple[str, ...]
    """Cases whose decision differs from the reference's."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkReport:
    """Measurements of all engines, in the requested order."""

    figures: tuple[EngineBenchmark, ...]
    """Measurements, one entry for each engine."""
    reference: str
    """Engine that the others are compared with."""
    passed_over: Mapping[str, str]
    """Skipped engine -> reason."""

    def require_agreement(self) -> None:
        """Require that every engine agrees with the reference.

        Raises:
            ParityError: an engine differs from the reference by more than its declared bound.
        """
        for f in self.figures:
            if f.max_difference > f.allowed_difference:
                raise ParityError(
                    f"engine {f.engine} differs from {self.reference} by up to {f.max_difference:.2g} in probability; "
                    f"the declared bound is {f.allowed_difference:.2g}",
                    fix="run all parity checks with `tmi verify`, and do not use this engine until they pass",
                )


class BenchmarkWorker:
    """Worker process of one engine, controlled by lines of JSON."""

    def __init__(self, plan: BenchmarkPlan, engine: str) -> None:
        """Start the process and wait for its first result."""
        request = {
            "bundle": str(plan.bundle.folder),
            "engine": engine,
            "threads": plan.threads,
            "keys": [str(key) for key in required_keys(plan.key)],
            "cases": [str(case.folder) for case in plan.cases],
            "mask_label": plan.cases[0].mask_label,
        }
        self._engine = engine
        start = perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, *plan.worker, json.dumps(request)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            self.first = self._receive()
        except BaseException:
            self._stop()
            raise
        self.start_seconds = perf_counter() - start

    def predict(self, cases: Sequence[int], *, batch: int = 1) -> dict[str, Any]:
        """Predict the cases with these indices; returns seconds and results."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"cases": list(cases), "batch": batch}) + "\n")
        self._process.stdin.flush()
        return self._receive()

    def finish(self) -> dict[str, Any]:
        """End the process; returns its peak memory and imports."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        resources = self._receive()
        self._process.wait()
        return resources

    def __enter__(self) -> BenchmarkWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise UnavailableError(
                f"the process of engine {self._engine} ended without a result (exit code {code})",
                fix=f"try `tmi predict --engine {self._engine}`; it may need more memory than is available",
            )
        message: dict[str, Any] = json.loads(line)
        if "error" in message:
            raise _error(message["error"], self._engine)
        for result in message.get("answers", ()):
            if result["status"] != "predicted":
                raise InputRejectedError(
                    result["what"], fix=result["fix"], code=result["code"], case_id=result["case_id"]
                )
        return message


def _error(message: Mapping[str, str], engine: str) -> TmiError:
    classes = {cls.__name__: cls for cls in (UsageError, DamagedError, UnavailableError, ParityError)}
    return classes.get(message["kind"], UnavailableError)(f"engine {engine}: {message['what']}", fix=message["fix"])


def choose_engines(requested: Sequence[str], bundle: Bundle) -> tuple[tuple[str, ...], dict[str, str]]:
    """Select the engines to measure; those that cannot run are skipped with a reason.

    Raises:
        UsageError: no such engine.
        UnavailableError: no engine can run here; or an engine was requested by name and the bundle has no graphs for it
            or its package is missing.
    """
    skipped: dict[str, str] = {}
    candidates = requested or [name for name in ENGINES if not is_out_of_scope(name, bundle)]
    for name in candidates:
        if (reason := unavailable_reason(name, bundle)) is not None:
            skipped[name] = reason
    chosen = tuple(dict.fromkeys(name for name in candidates if name not in skipped))
    if not chosen or (requested and skipped):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise UnavailableError(
            f"no engine to measure ({reasons})" if not chosen else reasons,
            fix="name engines that are installed and that the bundle has graphs for (`tmi inspect` lists them)",
        )
    return chosen, skipped


@dataclass(frozen=True)
class _EngineProcess:
    """Last process of an engine, and the seconds its processes took to their first result."""

    worker: BenchmarkWorker
    first_start: float
    starts: tuple[float, ...]


def measure(
    plan: BenchmarkPlan,
    *,
    passed_over: Mapping[str, str] | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> BenchmarkReport:
    """Measure every engine of the plan.

    Args:
        plan: what to measure.
        passed_over: engine -> why it is not in the plan, for the report.
        progress: called with one line for each step.

    Raises:
        InputRejectedError: a case cannot be predicted.
        UnavailableError: an engine did not start, or its process ended.
        DamagedError: an engine cannot load the bundle.
        ParityError: the outputs of an engine that was requested by name differ from the validated model's.
    """
    skipped = dict(passed_over or {})
    with contextlib.ExitStack() as stack:
        processes: dict[str, _EngineProcess] = {}
        for engine in plan.engines:
            try:
                processes[engine] = _start(plan, engine, progress)
            except (ParityError, UnavailableError) as error:
                if plan.named or (engine == plan.engines[-1] and not processes):
                    raise
                skipped[engine] = error.what
            else:
                stack.enter_context(processes[engine].worker)
        engines = tuple(processes)
        warm: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
        # Warm rounds: one engine at a time, while the other processes wait for a line on stdin.
        for number, engine in _rounds(engines, plan.repeats):
            progress(f"round {number + 1} of {plan.repeats}: {engine}")
            warm[engine].append(processes[engine].worker.predict([number % len(plan.cases)]))
        all_cases: dict[str, dict[str, Any]] = {}
        for engine in engines:
            progress(f"{engine}: all {len(plan.cases)} cases, batch {plan.batch}")
            all_cases[engine] = processes[engine].worker.predict(range(len(plan.cases)), batch=plan.batch)
        resources = {engine: processes[engine].worker.finish() for engine in engines}
    reference = REFERENCE if REFERENCE in engines else engines[-1]
    records = {engine: processes[engine].worker.first["engine"] for engine in engines}
    allowed = {engine: largest_error(engine, records[engine]["precision"]) for engine in engines}
    results = [
        _engine_benchmark(
            engine,
            reference,
            process=processes[engine],
            warm=warm,
            all_cases=all_cases,
            resources=resources[engine],
            allowed_difference=allowed[engine] + allowed[reference],
        )
        for engine in engines
    ]
    return BenchmarkReport(figures=tuple(results), reference=reference, passed_over=skipped)


def _start(plan: BenchmarkPlan, engine: str, progress: Callable[[str], None]) -> _EngineProcess:
    """Fill the caches with one process, time the following ones, keep the last."""
    progress(f"{engine}: first start")
    with BenchmarkWorker(plan, engine) as first:
        first.finish()
    starts: list[float] = []
    while True:
        progress(f"{engine}: start {len(starts) + 1} of {plan.starts}")
        worker = BenchmarkWorker(plan, engine)
        starts.append(worker.start_seconds)
        if len(starts) == plan.starts:
            return _EngineProcess(worker, first.start_seconds, tuple(starts))
        with worker:
            worker.finish()


def _rounds(engines: Sequence[str], repeats: int) -> Iterator[tuple[int, str]]:
    """(round, engine): every round runs each engine once, in an order that is reversed after each round."""
    for number in range(repeats):
        for engine in engines if number % 2 == 0 else engines[::-1]:
            yield number, engine


def _engine_benchmark(
    engine: str,
    reference: str,
    *,
    process: _EngineProcess,
    warm: Mapping[str, Sequence[Mapping[str, Any]]],
    all_cases: Mapping[str, Mapping[str, Any]],
    resources: Mapping[str, Any],
    allowed_difference: float,
) -> EngineBenchmark:
    record = process.worker.first["engine"]
    seconds = tuple(float(w["seconds"]) for w in warm[engine])
    stages = [w["answers"][0]["seconds"] for w in warm[engine]]
    results = all_cases[engine]["answers"]
    pairs = list(zip(results, all_cases[reference]["answers"], strict=True))
    return EngineBenchmark(
        engine=engine,
        package=record["package"],
        precision=record["precision"],
        threads=record["threads"],
        p50_seconds=statistics.median(seconds),
        p95_seconds=quantile(seconds, 0.95),
        warm_seconds=seconds,
        stage_seconds={name: statistics.median(s[name] for s in stages) for name in stages[0]},
        cases_a_minute=60 * len(results) / all_cases[engine]["seconds"],
        start_seconds=statistics.median(process.starts),
        first_start_seconds=process.first_start,
        peak_bytes=int(resources["peak_bytes"]),
        heavy=tuple(resources["heavy"]),
        to_reference=ratio(seconds, [float(w["seconds"]) for w in warm[reference]]),
        max_difference=max(_max_probability_difference(one, other) for one, other in pairs),
        allowed_difference=allowed_difference,
        changed_decisions=tuple(one["case_id"] for one, other in pairs if one["decision"] != other["decision"]),
    )


def _max_probability_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Largest absolute difference of a class probability, over the ensemble and every fold."""
    rows = zip((one, *one["folds"]), (other, *other["folds"]), strict=True)
    differences = [abs(a["probability"][name] - b["probability"][name]) for a, b in rows for name in a["probability"]]
    return float(max(differences))
