"""Times of a bundle's engines on this machine, from which `auto` selects the quickest.

The first time that a machine opens a bundle, each engine runs one pass of the graph that takes most of a prediction's
time (the CT encoder of one fold, in its real shape) in a process of its own. An engine that is slower than the quickest
so far is stopped. The first one timed is the first of the table that is not optional: an optional one may be many times
slower on a processor that only emulates its number format. No further engine starts after `BUDGET_SECONDS`.

The times are cached for the bundle, engines, versions, processor and number of threads
(`tmi.runtime.verification.machine_records`), never in the bundle; later starts read them. One process measures at a
time: others that open the same bundle wait for its result.
"""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Protocol

from tmi.runtime.bundle.manifest import GraphSpec, Manifest
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.host import cpu_features, cpu_name, package_version
from tmi.runtime.engines.nvidia_driver import find_gpu
from tmi.runtime.engines.registry import engine_spec
from tmi.runtime.engines.selection import EngineTimes
from tmi.runtime.inference.ensemble import encoder_graphs
from tmi.runtime.verification.machine_records import read_record, record_file, write_record
from tmi.runtime.verification.self_test import LogCallback
from tmi.runtime.verification.timing_process import EngineFailedError, TimingProcess, TooSlowError
from tmi.toolkit.compute.cpu import available_cores
from tmi.toolkit.errors import UsageError
from tmi.toolkit.storage.file_lock import open_locked
from tmi.toolkit.storage.private_files import make_private_folder
from tmi.toolkit.storage.serialization import from_json, to_json

KIND = "engine-times"
"""Name of the folder below the cache root."""
BUDGET_SECONDS = 60.0
"""No further engine starts after this many seconds; the last one started may take as long as the quickest took."""
LONG_SECONDS = 2.0
"""A pass that takes longer is not repeated where the first one decides."""
CLEARLY = 1.25
"""Ratio of two passes from which the first pass of a long one decides: it costs up to a fifth more than later ones."""
SLOWER = 1.5
"""A first pass is stopped at this multiple of the quickest engine's time."""
SLACK_SECONDS = 0.5
"""Seconds added to that limit: loading of kernels and memory at a first pass."""
SHORT_ROUNDS = 3
"""Rounds in which two engines of short passes are timed in turn."""
WAIT_SECONDS = 0.2
ROLES = {"ct": "CT encoder", "text": "text encoder", "fusion": "fusion"}
"""Role of a graph -> what is timed, for people."""


class PassTimer(Protocol):
    """Times passes of one graph; `TimingProcess` is its implementation."""

    def run(self, engine: str, *, limit: float | None = None) -> float:
        """Seconds of a pass.

        Raises:
            TooSlowError: it took longer than `limit`.
            EngineFailedError: the engine cannot be opened or run.
        """

    def close(self, engine: str) -> None:
        """Free the engine's memory."""


Measure = Callable[[Bundle, Sequence[str], int | None], EngineTimes | None]
"""Times engines (bundle, engines, threads); None if no engine could be timed."""


def dominating_graph(manifest: Manifest) -> GraphSpec:
    """The graph that takes most of a prediction's time: the first CT encoder, else text encoder, else the fusion."""
    encoders = (*encoder_graphs(manifest, "ct"), *encoder_graphs(manifest, "text"))
    return encoders[0] if encoders else manifest.graphs[-1]


def measure_engines(bundle: Bundle, engines: Sequence[str], threads: int | None) -> EngineTimes | None:
    """Time engines in a process of their own; None if the first one crashes, which its start then reports."""
    graph = dominating_graph(bundle.manifest)
    with TimingProcess(bundle, graph.name, tuple(engines), threads=threads) as timer:
        return time_engines(engines, timer, passes=ROLES[graph.role])


def time_engines(
    engines: Sequence[str],
    timer: PassTimer,
    *,
    passes: str,
    budget: float = BUDGET_SECONDS,
    clock: Callable[[], float] = monotonic,
) -> EngineTimes | None:
    """Time engines against the quickest so far.

    Args:
        engines: names, in the order of the engine table.
        timer: times one pass.
        passes: what a pass is, for people.
        budget: seconds after which no further engine starts.
        clock: seconds.

    Returns:
        The times; None if the first engine crashes, or none could be timed.
    """
    start, seconds, untimed = clock(), dict[str, float](), dict[str, str]()
    quickest: str | None = None
    for name in _trial_order(engines):
        left = budget - (clock() - start)
        try:
            if quickest is None:
                seconds[name] = _first_time(timer, name)
            elif left > 0:
                seconds |= _duel(timer, quickest, name, seconds[quickest], limit=left)
            else:
                untimed[name] = f"not timed within {budget:.0f} s"
                continue
        except TooSlowError as slow:
            untimed[name] = f"over {slow.seconds:.3g} s"
        except EngineFailedError as failure:
            if quickest is None and failure.ended:
                return None
            untimed[name] = f"cannot be timed: {failure.reason}"
        else:
            slower = max((n for n in (quickest, name) if n is not None), key=lambda n: seconds[n])
            quickest = min(seconds, key=lambda n: seconds[n])
            if slower != quickest:
                with suppress(EngineFailedError):
                    timer.close(slower)
    if not seconds:
        return None
    return EngineTimes(passes=passes, seconds=seconds, untimed=untimed, created=_today())


def _trial_order(engines: Sequence[str]) -> list[str]:
    """The first engine that is not optional, then the others in the order of the table."""
    first = next((name for name in engines if not engine_spec(name).optional), engines[0])
    return [first, *(name for name in engines if name != first)]


def _first_time(timer: PassTimer, name: str) -> float:
    """Seconds of an engine without another one to compare it with."""
    first = timer.run(name)
    return first if first > LONG_SECONDS else min(first, timer.run(name))


def _duel(timer: PassTimer, best: str, name: str, best_seconds: float, *, limit: float) -> dict[str, float]:
    """Seconds of an engine, and of the quickest one if it ran again: in turn, so that other work slows both alike."""
    # Less than the quickest one's time would stop an engine that is quicker, and the cache would keep that.
    limit = min(max(limit, best_seconds), SLOWER * best_seconds + SLACK_SECONDS)
    first = timer.run(name, limit=limit)
    if best_seconds > LONG_SECONDS and not 1 / CLEARLY < first / best_seconds < CLEARLY:
        return {name: first}
    # The quickest one may have to be opened again: of two long passes, the one that loads does not replace the other.
    times: dict[str, list[float]] = {best: [best_seconds] if best_seconds > LONG_SECONDS else [], name: []}
    for _ in range(1 if best_seconds > LONG_SECONDS else SHORT_ROUNDS):
        times[name].append(timer.run(name, limit=limit))
        times[best].append(timer.run(best))
    return {best: min(times[best]), name: min(times[name])}


def engine_times(
    bundle: Bundle,
    engines: Sequence[str],
    *,
    threads: int | None,
    skipped: Mapping[str, str],
    measure: Measure | None,
    log: LogCallback = lambda line: None,
) -> EngineTimes | None:
    """Times of engines on this machine, from the cache or measured.

    Args:
        bundle: an opened bundle.
        engines: those that can run here, of which at least two are needed.
        threads: threads of an engine; None uses all cores.
        skipped: engine -> why it must not be timed.
        measure: times them; None reads the cache only.
        log: receives a line before and after a measurement.
    """
    if len(engines) < 2:
        return None
    combination = times_key(bundle, engines, threads=threads)
    file = record_file(KIND, combination)
    known = _read(file, combination)
    left = [name for name in engines if name not in skipped]
    if known is not None or measure is None or len(left) < 2:
        return known
    with _one_at_a_time(file, log):
        known = _read(file, combination)
        if known is not None:  # of a process that was waited for
            return known
        log(f"first use of this bundle on this machine: timing {', '.join(left)}")
        start = monotonic()
        times = measure(bundle, left, threads)
        if times is None:
            log("the engines could not be timed")
            return None
        _remember(file, combination, times, f"engines timed in {monotonic() - start:.1f} s", log)
    return times


def times_key(bundle: Bundle, engines: Sequence[str], *, threads: int | None) -> dict[str, Any]:
    """Everything that the times depend on: bundle, engines, versions, processor, threads, GPU for its engines."""
    packages = sorted({engine_spec(name).package for name in engines})
    gpu = find_gpu() if any(engine_spec(name).gpu for name in engines) else None
    processor = {"machine": platform.machine(), "cpu": cpu_name(), "features": cpu_features()}
    return {
        "bundle": bundle.digest,
        "engines": list(engines),
        "versions": {"tmi-clnet": version("tmi-clnet"), **{name: package_version(name) for name in packages}},
        "machine": {**processor, **({} if gpu is None else {"gpu": vars(gpu)})},
        "threads": threads or available_cores(),
    }


def _read(file: Path | None, combination: Mapping[str, Any]) -> EngineTimes | None:
    record = read_record(file, combination)
    if record is None:
        return None
    try:
        times = from_json(EngineTimes, record["times"], where="engine times")
    except (UsageError, KeyError):
        return None
    named = {*times.seconds, *times.untimed}
    return times if times.seconds and named <= set(combination["engines"]) else None


def _remember(
    file: Path | None, combination: Mapping[str, Any], times: EngineTimes, done: str, log: LogCallback
) -> None:
    if file is None:
        log(f"{done}; not cached, caching is off")
        return
    try:
        write_record(file, combination, {"times": to_json(times)})
    except OSError as error:
        log(f"{done}, but they cannot be cached in {file.parent} ({error.strerror}); set TMI_CACHE")
    else:
        log(f"{done}, cached in {file.parent}")


@contextmanager
def _one_at_a_time(file: Path | None, log: LogCallback) -> Iterator[None]:
    """Wait until no other process measures the same; a cache that cannot be written has no lock."""
    lock, waiting = None, False
    while file is not None and lock is None:
        try:
            make_private_folder(file.parent)
            lock = open_locked(file.with_suffix(".lock"), busy=lambda: UsageError("another process", fix="wait"))
        except UsageError:
            if not waiting:
                log("another process is timing the engines of this bundle: waiting for it")
            waiting = True
            sleep(WAIT_SECONDS)
        except OSError:
            break
    try:
        yield
    finally:
        if lock is not None and file is not None:
            with suppress(OSError):
                file.with_suffix(".lock").unlink()
            lock.close()


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()
