"""Number of usable CPU cores, and a thread pool of matching size."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from concurrent.futures import ThreadPoolExecutor

SPIN_COUNT = "1000"
"""Turns that a thread of OpenMP waits for the others before it sleeps; libgomp's own default is 300,000."""
WAIT_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
"""Variables by which a user sets the waiting of OpenMP's threads."""


def limit_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let the threads of OpenMP sleep soon while they wait, unless the environment sets their waiting.

    torch's threads meet after every operation. On a machine with other work each would wait for one that does not run,
    and take its processor meanwhile. libgomp reads the variable when torch is imported. Results do not change.
    """
    if not any(name in environment for name in WAIT_VARIABLES):
        environment["GOMP_SPINCOUNT"] = SPIN_COUNT


def available_cores() -> int:
    """Return the number of cores in the CPU affinity mask of this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_pool() -> ThreadPoolExecutor:
    """Return a pool with one thread per core, minus one for the caller, and at least one; use it as context manager."""
    return ThreadPoolExecutor(max_workers=max(1, available_cores() - 1), thread_name_prefix="core")
