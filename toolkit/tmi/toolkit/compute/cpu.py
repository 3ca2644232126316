"""Number of usable CPU cores, and a thread pool of matching size."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor


def available_cores() -> int:
    """Return the number of cores in the CPU affinity mask of this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_pool() -> ThreadPoolExecutor:
    """Return a pool with one thread per core, minus one for the caller, and at least one; use it as context manager."""
    return ThreadPoolExecutor(max_workers=max(1, available_cores() - 1), thread_name_prefix="core")
