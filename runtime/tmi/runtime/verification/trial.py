"""Trial of a bundle's graphs in a process that may die, before this process loads them for the first time.

Engines are native code. A graph that passes the check of its file (`tmi.runtime.bundle.onnx_check`) may still have
shapes that crash an engine, take all memory or never end. The trial loads the graphs and runs the first golden input in
a child process with limits of memory and time that follow from the manifest. The child ends when this process ends,
even if it is killed. The trial runs once for each combination of the startup self-test, which records its result;
without a cache folder it runs at every start. Errors that are no crash are left to this process, which reports them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from time import monotonic, sleep

from safetensors import SafetensorError

from tmi.runtime.bundle.manifest import Manifest
from tmi.runtime.bundle.reader import Bundle, inspect_bundle
from tmi.runtime.engines.precision import validated_at_export
from tmi.runtime.engines.registry import engine_spec, open_engine
from tmi.runtime.verification.golden_inputs import first_golden_input, golden_from_manifest
from tmi.runtime.verification.outputs import evaluate
from tmi.runtime.verification.self_test import cached_result
from tmi.toolkit.compute.worker_process import end_with_input
from tmi.toolkit.errors import DamagedError, TmiError

ARTEFACTS = ("onnx", "onnx-int8", "torchscript")
"""Artefact kinds whose graphs are tried: those that an engine on the CPU parses."""
GIB = 2**30
POLL_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a trial."""

    memory_bytes: int
    """Resident memory."""
    cpu_seconds: int
    """Processor time of all threads."""


def trial_limits(manifest: Manifest, engine: str) -> Limits:
    """Limits that no valid bundle reaches, by the sizes of its graphs and its volume."""
    spec = engine_spec(engine)
    names = {g.artefacts[spec.artefact] for g in manifest.graphs if spec.artefact in g.artefacts}
    graph_bytes = sum(manifest.files[name].bytes for name in names if name in manifest.files)
    voxels = prod(manifest.config.ct.shape_DHW) * manifest.uses("image")
    cases = 1 if not spec.optional else manifest.golden.count
    encoders = sum(g.role == "ct" for g in manifest.graphs)
    # The float32 volume takes 4 bytes a voxel; a network of the paper's size has about 50 times that in activations.
    return Limits(
        memory_bytes=3 * GIB // 2 + 4 * graph_bytes + 4 * 96 * voxels * cases,
        cpu_seconds=8 + 100 * graph_bytes // GIB + 400 * voxels * encoders * cases // 2**24,
    )


def require_survived_trial(bundle: Bundle, engine: str, *, threads: int | None = None) -> None:
    """Load and run a bundle's graphs in a child process, unless this combination has passed the self-test here.

    Args:
        bundle: an opened bundle.
        engine: name of the engine.
        threads: threads of the engine; None uses all cores.

    Raises:
        DamagedError: the child died, or exceeded a limit.
    """
    spec = engine_spec(engine)
    if spec.gpu or spec.artefact not in ARTEFACTS or not bundle.has(spec.artefact) or not sys.executable:
        return
    tested, _ = cached_result(bundle, engine)
    if tested:
        return
    ended = _run_child(bundle, engine, threads, trial_limits(bundle.manifest, engine))
    if ended is not None:
        raise DamagedError(
            f"bundle {bundle.folder}: engine {engine} {ended} when it runs the bundle's graphs in a process of its own",
            fix="get the bundle again from its source and compare it with `tmi verify --key`; if it is intact, choose "
            "another --engine",
        )


def _run_child(bundle: Bundle, engine: str, threads: int | None, limits: Limits) -> str | None:
    """Run `main` in a child; how it ended if it crashed or exceeded a limit."""
    # -P: no module of the working directory takes the place of an installed one.
    command = [sys.executable, "-P", "-m", __name__, str(bundle.folder), bundle.digest, engine, str(threads or 0)]
    command.append(str(limits.cpu_seconds))
    quiet = subprocess.DEVNULL
    try:
        # The pipe ends with this process, even if it is killed: `end_with_input`.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet)
    except OSError:  # the user may not start the interpreter again: a container's user, a limit on processes
        return None
    # Processor time is limited by the child itself; this bound ends a deadlock.
    deadline = monotonic() + 60 + 3 * limits.cpu_seconds
    try:
        while process.poll() is None:
            if resident_bytes(process.pid) > limits.memory_bytes:
                return f"needs more than {limits.memory_bytes / GIB:.1f} GiB of memory"
            if monotonic() > deadline:
                return "does not end"
            sleep(POLL_SECONDS)
    finally:
        process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()
    code = process.returncode
    if code in (-24, -9):  # SIGXCPU, and SIGKILL at the hard limit or by the system's lack of memory
        return f"computes for more than {limits.cpu_seconds} s, or lacks memory,"
    return f"crashes (signal {-code})" if code < 0 else None


def resident_bytes(process: int) -> int:
    """Resident memory of a process; 0 if the system does not report it."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_bytes().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def main(folder: str, digest: str, engine: str, threads: str, cpu_seconds: str) -> None:
    """Load and run the graphs once; every error but a crash is left to the parent."""
    end_with_input()
    with suppress(ImportError):  # no such limits on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_seconds), int(cpu_seconds) + 1))
    with suppress(TmiError, RuntimeError, ValueError, TypeError, KeyError, MemoryError, OSError, SafetensorError):
        bundle = inspect_bundle(Path(folder))  # the bytes of each graph are compared when they are loaded
        if bundle.digest != digest:
            return
        manifest = bundle.manifest
        every = engine_spec(engine).optional and not validated_at_export(manifest, engine)
        golden = golden_from_manifest(manifest) if every else first_golden_input(manifest)
        with open_engine(engine, bundle, threads=int(threads) or None) as opened:
            evaluate(opened, manifest, golden)


if __name__ == "__main__":
    main(*sys.argv[1:])
