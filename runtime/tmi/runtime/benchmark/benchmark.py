"""What a bundle's engines cost on this machine: the measuring part of `tmi bench`.

Each engine answers in a process of its own, which the caller names. A first process of each fills the caches and
checks the first opening; later ones are the second start that a user sees. The last of each stays, and then all engines
are asked the same case in turn, round by round (`tmi.runtime.benchmark.interleaved_timing` says why), one computing
while the others wait.
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
from tmi.runtime.engines.nvidia_driver import find_gpu
from tmi.runtime.engines.registry import ENGINES, engine_spec, installed
from tmi.toolkit.cases.case import Case
from tmi.toolkit.errors import DamagedError, InputRejectedError, TmiError, UnavailableError, UsageError

REFERENCE = "eager"
"""The engine that the others' answers and times are set against, where it is measured; else the last one is."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkPlan:
    """What to measure."""

    bundle: Bundle
    """Opened once before, so that a damaged one is told at once."""
    engines: tuple[str, ...]
    """Names in `ENGINES`."""
    named: bool = True
    """Whether they were asked for by name; of those that were not, one that cannot answer here is passed over."""
    cases: tuple[Case, ...]
    """Asked in turn."""
    worker: tuple[str, ...]
    """Arguments of the Python interpreter that start a worker process, as `tmi.runtime.cli.bench_worker.WORKER`."""
    repeats: int
    """Rounds of warm predictions."""
    starts: int = 2
    """New processes that are timed, after the one that fills the caches."""
    batch: int = 1
    """Cases computed together in the run over all cases."""
    threads: int | None = None
    """Of each engine; None: all cores."""


@dataclass(frozen=True, kw_only=True)
class EngineBenchmark:
    """One engine on this machine. Seconds are wall-clock; a prediction is from the case's files to the answer."""

    engine: str
    """Name in `ENGINES`."""
    package: str
    """Package and version that did the work."""
    precision: str
    """Number format of the computation."""
    threads: int
    """Threads it may use."""
    p50_seconds: float
    """Median warm prediction of one case."""
    p95_seconds: float
    """95th percentile of the warm predictions; with few rounds little less than the slowest."""
    warm_seconds: tuple[float, ...]
    """Every round."""
    stage_seconds: Mapping[str, float]
    """Median over the rounds, by stage of a prediction, and their `total`."""
    cases_a_minute: float
    """In one run over all cases, at the plan's batch."""
    start_seconds: float
    """From starting a new process to its first answer, with all caches filled; median."""
    first_start_seconds: float
    """The same the first time, with the check of the first opening where it had not been made."""
    peak_bytes: int
    """Peak resident memory of its process."""
    heavy: tuple[str, ...]
    """Which of torch, transformers, MONAI and the like its process imported."""
    to_reference: Ratio
    """Its warm predictions over those of the reference, round by round."""
    max_difference: float
    """Largest distance of a class's probability from the reference's, over all cases, the ensemble and every fold."""
    allowed_difference: float
    """What the engine declares, and the reference with it."""
    changed_decisions: tuple[str, ...]
    """Cases that it decides differently than the reference."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkReport:
    """All engines, in the order in which they were asked for."""

    figures: tuple[EngineBenchmark, ...]
    """One for each engine."""
    reference: str
    """Engine that the others are set against."""
    passed_over: Mapping[str, str]
    """Engine -> why it was not measured."""

    def require_agreement(self) -> None:
        """A table of quick and wrong engines is no good news.

        Raises:
            ParityError: an engine is further from the reference than declared.
        """
        for f in self.figures:
            if f.max_difference > f.allowed_difference:
                raise ParityError(
                    f"engine {f.engine} is up to {f.max_difference:.2g} from {self.reference} in probability; "
                    f"{f.allowed_difference:.2g} is declared",
                    fix="ask all gates with `tmi verify`, and do not use this engine until they hold",
                )


class BenchmarkWorker:
    """A process that answers for one engine."""

    def __init__(self, plan: BenchmarkPlan, engine: str) -> None:
        """Start it and wait for its first answer."""
        asked = {
            "bundle": str(plan.bundle.folder),
            "engine": engine,
            "threads": plan.threads,
            "cases": [str(case.folder) for case in plan.cases],
            "mask_label": plan.cases[0].mask_label,
        }
        self._engine = engine
        start = perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, *plan.worker, json.dumps(asked)],
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

    def ask(self, cases: Sequence[int], *, batch: int = 1) -> dict[str, Any]:
        """Seconds and answers of the cases of these numbers."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"cases": list(cases), "batch": batch}) + "\n")
        self._process.stdin.flush()
        return self._receive()

    def finish(self) -> dict[str, Any]:
        """Let it end; what it took."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        last = self._receive()
        self._process.wait()
        return last

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
                f"the process of engine {self._engine} ended without an answer (exit code {code})",
                fix=f"try `tmi predict --engine {self._engine}`; it may need more memory than there is",
            )
        message: dict[str, Any] = json.loads(line)
        if "error" in message:
            raise _error(message["error"], self._engine)
        for answer in message.get("answers", ()):
            if answer["status"] != "predicted":
                raise InputRejectedError(
                    answer["what"], fix=answer["fix"], code=answer["code"], case_id=answer["case_id"]
                )
        return message


def _error(said: Mapping[str, str], engine: str) -> TmiError:
    kinds = {kind.__name__: kind for kind in (UsageError, DamagedError, UnavailableError, ParityError)}
    return kinds.get(said["kind"], UnavailableError)(f"engine {engine}: {said['what']}", fix=said["fix"])


def choose_engines(asked: Sequence[str], bundle: Bundle) -> tuple[tuple[str, ...], dict[str, str]]:
    """The engines to measure, and for those that were not asked for by name why they are passed over.

    Raises:
        UsageError: no such engine.
        UnavailableError: none can run here; or, where engines are named, the bundle has no graphs for one or its
            package is missing.
    """
    passed_over: dict[str, str] = {}
    # where nobody asks, plans that most bundles do not have are not worth a line
    wanted = asked or [n for n, spec in ENGINES.items() if not spec.gpu or bundle.has(spec.artefact)]
    for name in wanted:
        spec = engine_spec(name)
        if not bundle.has(spec.artefact):
            passed_over[name] = f"the bundle holds no {spec.artefact} graphs"
        elif not installed(name):
            passed_over[name] = f"{spec.package} is not installed"
        elif spec.gpu and find_gpu() is None:
            passed_over[name] = "no NVIDIA GPU with its driver"
    chosen = tuple(dict.fromkeys(name for name in wanted if name not in passed_over))
    if not chosen or (asked and passed_over):
        why = "; ".join(f"{name}: {reason}" for name, reason in passed_over.items())
        raise UnavailableError(
            f"nothing to measure ({why})" if not chosen else why,
            fix="name engines that are installed and that the bundle has graphs for (`tmi inspect` lists them)",
        )
    return chosen, passed_over


@dataclass(frozen=True)
class _EngineProcess:
    """An engine's last process, and how long its processes took to a first answer."""

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
        progress: told one line of what is being done.

    Raises:
        InputRejectedError: a case cannot be predicted.
        UnavailableError: an engine did not start, or its process ended.
        DamagedError: an engine cannot load the bundle.
        ParityError: an engine that was asked for by name does not answer like the validated model.
    """
    left_out = dict(passed_over or {})
    with contextlib.ExitStack() as stack:
        running: dict[str, _EngineProcess] = {}
        for engine in plan.engines:
            try:
                running[engine] = _start(plan, engine, progress)
            except (ParityError, UnavailableError) as error:
                if plan.named or (engine == plan.engines[-1] and not running):
                    raise
                left_out[engine] = error.what
            else:
                stack.enter_context(running[engine].worker)
        engines = tuple(running)
        warm: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
        for number, engine in _rounds(engines, plan.repeats):
            progress(f"round {number + 1} of {plan.repeats}: {engine}")
            warm[engine].append(running[engine].worker.ask([number % len(plan.cases)]))
        whole: dict[str, dict[str, Any]] = {}
        for engine in engines:
            progress(f"{engine}: all {len(plan.cases)} cases, batch {plan.batch}")
            whole[engine] = running[engine].worker.ask(range(len(plan.cases)), batch=plan.batch)
        ends = {engine: running[engine].worker.finish() for engine in engines}
    reference = REFERENCE if REFERENCE in engines else engines[-1]
    figures = [
        _engine_benchmark(engine, reference, running=running[engine], warm=warm, whole=whole, end=ends[engine])
        for engine in engines
    ]
    return BenchmarkReport(figures=tuple(figures), reference=reference, passed_over=left_out)


def _start(plan: BenchmarkPlan, engine: str, progress: Callable[[str], None]) -> _EngineProcess:
    """Fill the caches with one process, time the next ones, keep the last."""
    progress(f"{engine}: first start")
    with BenchmarkWorker(plan, engine) as filling:
        filling.finish()
    starts: list[float] = []
    while True:
        progress(f"{engine}: start {len(starts) + 1} of {plan.starts}")
        worker = BenchmarkWorker(plan, engine)
        starts.append(worker.start_seconds)
        if len(starts) == plan.starts:
            return _EngineProcess(worker, filling.start_seconds, tuple(starts))
        with worker:
            worker.finish()


def _rounds(engines: Sequence[str], repeats: int) -> Iterator[tuple[int, str]]:
    """Each round asks every engine once, in an order that is turned round after each."""
    for number in range(repeats):
        for engine in engines if number % 2 == 0 else engines[::-1]:
            yield number, engine


def _engine_benchmark(
    engine: str,
    reference: str,
    *,
    running: _EngineProcess,
    warm: Mapping[str, Sequence[Mapping[str, Any]]],
    whole: Mapping[str, Mapping[str, Any]],
    end: Mapping[str, Any],
) -> EngineBenchmark:
    record = running.worker.first["engine"]
    seconds = tuple(float(w["seconds"]) for w in warm[engine])
    stages = [w["answers"][0]["seconds"] for w in warm[engine]]
    answers = whole[engine]["answers"]
    pairs = list(zip(answers, whole[reference]["answers"], strict=True))
    return EngineBenchmark(
        engine=engine,
        package=record["package"],
        precision=record["precision"],
        threads=record["threads"],
        p50_seconds=statistics.median(seconds),
        p95_seconds=quantile(seconds, 0.95),
        warm_seconds=seconds,
        stage_seconds={name: statistics.median(s[name] for s in stages) for name in stages[0]},
        cases_a_minute=60 * len(answers) / whole[engine]["seconds"],
        start_seconds=statistics.median(running.starts),
        first_start_seconds=running.first_start,
        peak_bytes=int(end["peak_bytes"]),
        heavy=tuple(end["heavy"]),
        to_reference=ratio(seconds, [float(w["seconds"]) for w in warm[reference]]),
        max_difference=max(_max_probability_difference(one, other) for one, other in pairs),
        allowed_difference=engine_spec(engine).max_abs_err + engine_spec(reference).max_abs_err,
        changed_decisions=tuple(one["case_id"] for one, other in pairs if one["decision"] != other["decision"]),
    )


def _max_probability_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Largest distance of a class's probability, over the ensemble and every fold."""
    rows = zip((one, *one["folds"]), (other, *other["folds"]), strict=True)
    differences = [abs(a["probability"][name] - b["probability"][name]) for a, b in rows for name in a["probability"]]
    return float(max(differences))
