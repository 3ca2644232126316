"""A process of its own that loads one graph with several engines and times passes, one command at a time.

Engines are native code: a graph that the trial (`tmi.runtime.verification.trial`) has not yet run may crash one, take
all memory or never end. And a pass cannot be interrupted, but a process can: a pass that exceeds its limit ends the
process, and the next command starts another one. The process ends when its parent ends, even if that is killed.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from tmi.runtime.bundle.manifest import GraphSpec
from tmi.runtime.bundle.reader import Bundle, inspect_bundle
from tmi.runtime.engines.registry import Arrays, Engine, open_engine
from tmi.runtime.verification.trial import GIB, POLL_SECONDS, Limits, resident_bytes, trial_limits
from tmi.toolkit.errors import TmiError

TEXT_TOKENS = 128
"""Length of the text that a text encoder is timed with."""
SHORTEST_SECONDS = 0.02
"""Passes are repeated for at least this time; the quickest counts, because other work can only add time."""
NO_LIMIT_SECONDS = 600.0
"""Limit of a command that has no other."""


class TooSlowError(Exception):
    """A pass took longer than its limit."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class EngineFailedError(Exception):
    """An engine cannot be timed."""

    def __init__(self, reason: str, *, ended: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.ended = ended
        """Whether the process crashed or exceeded its memory or processor time."""


class TimingProcess:
    """Times passes of one graph in a child process. Use it as a context manager."""

    def __init__(self, bundle: Bundle, graph: str, engines: tuple[str, ...], *, threads: int | None) -> None:
        self._bundle, self._graph, self._threads = bundle, graph, threads
        limits = [trial_limits(bundle.manifest, engine) for engine in engines]
        # At most two engines are open at a time.
        self._limits = Limits(
            memory_bytes=sum(sorted(limit.memory_bytes for limit in limits)[-2:]),
            cpu_seconds=sum(limit.cpu_seconds for limit in limits),
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: queue.Queue[bytes] = queue.Queue()
        self._open: set[str] = set()

    def __enter__(self) -> TimingProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def run(self, engine: str, *, limit: float | None = None) -> float:
        """Seconds of one pass, the quickest of several if it is short; opens the engine first if it is not open.

        Args:
            engine: name in `ENGINES`.
            limit: seconds after which the pass is stopped.

        Raises:
            TooSlowError: the pass took longer.
            EngineFailedError: the engine cannot be opened or run.
        """
        if engine not in self._open:
            self._ask({"do": "open", "engine": engine}, limit=None)
            self._open.add(engine)
        return self._ask({"do": "run", "engine": engine}, limit=limit)

    def close(self, engine: str) -> None:
        """Close an engine and free its memory."""
        if engine in self._open:
            self._open.discard(engine)
            self._ask({"do": "close", "engine": engine}, limit=None)

    def _ask(self, command: Mapping[str, str], *, limit: float | None) -> float:
        process = self._started()
        assert process.stdin is not None
        start = monotonic()
        with suppress(BrokenPipeError):  # it crashed: found below
            process.stdin.write(json.dumps(command).encode() + b"\n")
            process.stdin.flush()
        while True:
            with suppress(queue.Empty):
                left = POLL_SECONDS if limit is None else min(POLL_SECONDS, max(0.0, limit - (monotonic() - start)))
                line = self._lines.get(timeout=left)
                return self._seconds(line)
            if resident_bytes(process.pid) > self._limits.memory_bytes:
                self._stop()
                raise EngineFailedError(
                    f"needs more than {self._limits.memory_bytes / GIB:.1f} GiB of memory", ended=True
                )
            if monotonic() - start > (NO_LIMIT_SECONDS if limit is None else limit):
                self._stop()
                if limit is None:
                    raise EngineFailedError("does not end", ended=True)
                raise TooSlowError(limit)

    def _seconds(self, line: bytes) -> float:
        if not line:
            self._stop()
            raise EngineFailedError("crashes, or computes for too long", ended=True)
        message = json.loads(line)
        if "error" in message:
            raise EngineFailedError(message["error"], ended=False)
        return float(message["seconds"])

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            # -P: no module of the working directory takes the place of an installed one.
            command = [sys.executable, "-P", "-m", __name__, str(self._bundle.folder), self._bundle.digest]
            command += [self._graph, str(self._threads or 0), str(self._limits.cpu_seconds)]
            pipe = subprocess.PIPE
            try:
                process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
            except OSError as error:  # a user who may not start the interpreter again
                raise EngineFailedError(f"no process can be started ({error.strerror})", ended=True) from error
            self._process, self._lines = process, queue.Queue()
            threading.Thread(target=_forward, args=(process, self._lines), daemon=True).start()
        return self._process

    def _stop(self) -> None:
        self._open.clear()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdin is not None:
                with suppress(BrokenPipeError):
                    self._process.stdin.close()
            self._process = None


def _forward(process: subprocess.Popen[bytes], lines: queue.Queue[bytes]) -> None:
    """Put every line of a process into a queue, and an empty one at its end."""
    assert process.stdout is not None
    with process.stdout as stream:
        for line in stream:
            lines.put(line)
    lines.put(b"")


def made_up_inputs(spec: GraphSpec) -> Arrays:
    """Inputs of a graph for one case: noise, and tokens that every vocabulary has."""
    random, inputs = np.random.default_rng(0), dict[str, NDArray[np.generic]]()
    for tensor in spec.inputs:
        sizes = [1 if axis == 0 else TEXT_TOKENS if isinstance(n, str) else n for axis, n in enumerate(tensor.shape)]
        integers = np.dtype(tensor.dtype).kind == "i"
        inputs[tensor.name] = (
            np.ones(sizes, tensor.dtype) if integers else random.random(sizes, np.float32).astype(tensor.dtype)
        )
    return inputs


def _time_passes(engine: Engine, spec: GraphSpec, inputs: Arrays) -> float:
    passes: list[float] = []
    while sum(passes) < SHORTEST_SECONDS:
        start = perf_counter()
        engine.run(spec.name, inputs)
        passes.append(perf_counter() - start)
    return min(passes)


def _command(bundle: Bundle, engines: dict[str, Engine], inputs: Arrays, request: Mapping[str, Any]) -> float:
    """Carry out one command; returns seconds."""
    name, (spec,), start = request["engine"], bundle.manifest.graphs, perf_counter()
    if request["do"] == "run":
        return _time_passes(engines[name], spec, inputs)
    if request["do"] == "open":
        engines[name] = open_engine(name, bundle, threads=request["threads"])
    else:
        engines.pop(name).close()
    return perf_counter() - start


def _commands(lines: queue.Queue[bytes]) -> None:
    """Put the commands of standard input into a queue; end the process at its end, whatever the process computes."""
    with os.fdopen(os.dup(0), "rb") as stream:
        for line in stream:
            lines.put(line)
    os._exit(0)


def main(folder: str, digest: str, graph: str, threads: str, cpu_seconds: str) -> None:
    """Serve commands until standard input ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of libraries must not mix with the protocol on descriptor 1
    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_commands, args=(lines,), daemon=True).start()
    with suppress(ImportError):  # no such limits on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_seconds), int(cpu_seconds) + 1))
    whole = inspect_bundle(Path(folder))  # the bytes of each graph are compared when they are loaded
    if whole.digest != digest:
        return
    spec = whole.manifest.graph(graph)
    bundle, inputs = replace(whole, manifest=replace(whole.manifest, graphs=(spec,))), made_up_inputs(spec)
    engines: dict[str, Engine] = {}
    while True:
        request = {**json.loads(lines.get()), "threads": int(threads) or None}
        try:
            message: dict[str, Any] = {"seconds": _command(bundle, engines, inputs, request)}
        except TmiError as error:
            message = {"error": error.what}
        except (RuntimeError, ValueError, TypeError, KeyError, MemoryError, OSError, SafetensorError) as error:
            message = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
        out.write(json.dumps(message) + "\n")
        out.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
