"""Runs mutants in worker processes that are watched: a traceback, a crash, a hang or too much memory is one finding.

Each worker has a limit on its memory and on the size of its files. A worker that hangs is killed, one that crashes is
replaced, and both go on with the next mutant. The seed of a mutant is its target and its number, so that a finding can
be repeated: `python benchmarks/fuzz.py --target NAME --first NUMBER --mutants 1`.
"""

from __future__ import annotations

import faulthandler
import os
import random
import resource
import signal
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from factories.fuzzing.targets import TARGETS

LONGEST_S = 10.0
"""Longest time of one mutant."""
START_S = 180.0
"""Longest start of a worker with its imports and valid files."""
MEMORY_BYTES = 4 * 2**30
"""Memory that a worker may allocate beyond what it has after its imports."""
START_METHOD = "spawn"
"""How workers are started."""
FILE_BYTES = 2**30
"""Largest file that a worker may write."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A mutant that ended otherwise than in a value or a typed error."""

    target: str
    number: int
    kind: str
    """`traceback`, `crash`, `hang` or `memory`."""
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.target} --first {self.number}: {self.detail}"


@dataclass
class Outcome:
    """Counts and findings of a run."""

    counts: Counter[str] = field(default_factory=Counter)
    """`accepted` and `rejected` mutants."""
    findings: list[Finding] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    """Seconds and name of the slowest mutant."""


def mutant(name: str, number: int, valid: bytes) -> bytes:
    """The bytes of a mutant; the same for the same name, number and valid bytes."""
    return TARGETS[name].mutate(random.Random(f"{name}/{number}"), valid)


def _work(pipe: Connection, plan: Mapping[str, Sequence[int]]) -> None:
    """Worker: read the mutants of some targets. Sends the name of each target, then (number, kind, detail, seconds)."""
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    os.environ |= {"OMP_NUM_THREADS": "1", "TMI_CACHE": "off"}
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 1)
        os.dup2(null.fileno(), 2)
    warnings.simplefilter("ignore")
    for name, numbers in plan.items():
        with tempfile.TemporaryDirectory(prefix="tmi-fuzz-") as folder:
            _work_on(pipe, name, numbers, Path(folder))
    pipe.send(None)


def _work_on(pipe: Connection, name: str, numbers: Sequence[int], folder: Path) -> None:
    entry = TARGETS[name]
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    try:
        read = entry.prepare(folder)
        path = folder / entry.file
        valid = path.read_bytes()
        read()  # the valid file is accepted
    except Exception as error:
        pipe.send(RuntimeError(f"{name}: the valid file is not read: {_last_lines(error)}"))
        raise
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES, resource.RLIM_INFINITY))
    pipe.send(name)
    for number in numbers:
        path.write_bytes(mutant(name, number, valid))
        start = time.perf_counter()
        kind, detail = _outcome(read)
        pipe.send((number, kind, detail, time.perf_counter() - start))


def _outcome(read: Callable[[], object]) -> tuple[str, str]:
    from tmi.toolkit.errors import TmiError

    try:
        read()
    except TmiError as error:
        return ("rejected", "") if error.fix and len(str(error)) < 4000 else ("traceback", f"message: {error!s:.200}")
    except MemoryError as error:
        return "memory", _last_lines(error)
    except BaseException as error:  # noqa: BLE001 - every exception is a finding
        return "traceback", _last_lines(error)
    return "accepted", ""


def _last_lines(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/tmi/" in f.filename] or traceback.extract_tb(
        error.__traceback__
    )
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {error!s:.160} ({place})"


def fuzz_targets(plan: Mapping[str, Sequence[int]], outcome: Outcome, lock: Any, *, patience: float = 1.0) -> None:
    """Run the mutants of some targets, one after the other.

    Args:
        plan: target -> numbers of its mutants.
        outcome: receives counts and findings.
        lock: guards `outcome`.
        patience: factor on the longest time, for a busy machine.
    """
    left = {name: list(numbers) for name, numbers in plan.items()}
    while left:
        name, problem, code = _watch(left, outcome, lock, patience)
        if not problem:
            return
        number = left[name].pop(0)
        detail = f"signal or exit {code}" if problem == "crash" else f"longer than {LONGEST_S * patience:g} s"
        _record(outcome, lock, name, number, problem, detail, 0.0, patience)
        left = {name: numbers for name, numbers in left.items() if numbers}


def _watch(
    left: dict[str, list[int]], outcome: Outcome, lock: Any, patience: float
) -> tuple[str, Literal["", "hang", "crash"], int | None]:
    """Start a worker, and watch it to its end; numbers that are done are removed from `left`.

    Returns:
        Target, problem and exit code at the end of the worker.
    """
    context = get_context(START_METHOD)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, left), daemon=True)
    process.start()
    sender.close()
    name = ""
    try:
        while receiver.poll((LONGEST_S if name and left.get(name) else START_S) * patience):
            message = receiver.recv()
            if message is None:
                return name, "", 0
            if isinstance(message, Exception):
                raise message
            if isinstance(message, str):
                name = message
                continue
            number, kind, detail, seconds = message
            left[name].remove(number)
            if not left[name]:
                del left[name]
            _record(outcome, lock, name, number, kind, detail, seconds, patience)
        problem: Literal["", "hang", "crash"] = "hang"
    except (EOFError, OSError):
        process.join(10)
        problem = "crash"
    finally:
        if process.is_alive():
            process.kill()
        process.join()
        receiver.close()
    if name not in left:
        raise RuntimeError(f"the worker did not start {next(iter(left), 'a target')} (exit {process.exitcode})")
    return name, problem, process.exitcode


def _record(
    outcome: Outcome, lock: Any, name: str, number: int, kind: str, detail: str, seconds: float, patience: float
) -> None:
    with lock:
        if seconds > LONGEST_S * patience:
            kind, detail = "hang", f"{seconds:.1f} s"
        outcome.slowest = max(outcome.slowest, (seconds, f"{name} {number}"))
        if kind in ("accepted", "rejected"):
            outcome.counts[kind] += 1
        else:
            outcome.findings.append(Finding(target=name, number=number, kind=kind, detail=detail))


def fuzz(
    names: Sequence[str],
    *,
    mutants: int,
    first: int = 0,
    jobs: int = 2,
    patience: float = 1.0,
    progress: Callable[[str], None] = lambda name: None,
) -> Outcome:
    """Run `mutants` mutants over the targets, each with the same number of them, from number `first` on."""
    outcome, lock, waiting = Outcome(), threading.Lock(), list(names)
    each, more = divmod(mutants, len(waiting))
    numbers = {name: range(first, first + each + (i < more)) for i, name in enumerate(waiting)}
    together = max(1, len(waiting) // (4 * jobs))  # targets of one worker, which share its imports
    errors: list[BaseException] = []

    def run() -> None:
        while True:
            with lock:
                chunk = [waiting.pop(0) for _ in range(min(together, len(waiting)))]
            if not chunk or errors:
                return
            try:
                fuzz_targets({n: numbers[n] for n in chunk if numbers[n]}, outcome, lock, patience=patience)
            except BaseException as error:  # noqa: BLE001 - raised by the main thread
                errors.append(error)
                return
            for name in chunk:
                progress(name)

    threads = [threading.Thread(target=run) for _ in range(max(1, jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return outcome
