"""Start of a worker process: it leaves Ctrl-C to its parent, and it ends when its parent ends.

A worker of a process that was killed would wait for work for ever, or write into files that the next command writes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def initialize_worker() -> None:
    """Prepare a worker of a process pool; also limits ITK to one thread, because there is one process per core."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends Ctrl-C to the whole group
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"
    end_with_parent()


def end_with_parent() -> None:
    """Start a thread that ends this process as soon as its parent has ended, whatever the reason."""
    threading.Thread(target=_wait_for_parent, name="end with parent", daemon=True).start()


def end_with_input() -> None:
    """Start a thread that ends this process when its standard input ends: a pipe of which its parent holds the end."""
    threading.Thread(target=_wait_for_input, name="end with input", daemon=True).start()


def _wait_for_input() -> None:
    while os.read(0, 2**10):  # not `sys.stdin`, whose lock a blocked thread would hold when the interpreter ends
        pass
    os._exit(1)


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # waits for the end of a pipe that only the parent holds
        os._exit(1)
