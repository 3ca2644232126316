"""How many cores there are for us, and threads for all of them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_pool() -> ThreadPoolExecutor:
    """A thread for every core but the caller's own, at least one; leave its `with` block to end them."""
    return ThreadPoolExecutor(max_workers=max(1, available_cores() - 1), thread_name_prefix="core")
