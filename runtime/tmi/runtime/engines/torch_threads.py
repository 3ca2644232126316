"""torch's number of threads, one for the whole process, shared by the engines that are open."""

from __future__ import annotations

from threading import Lock

import torch

_lock = Lock()
_open: list[ThreadCount] = []
_before: list[int] = []
"""The number that the process had before the first engine opened; empty while none is open."""


class ThreadCount:
    """The number of threads that one open engine asks for; the latest one that is open holds.

    `release` may be called in any order and twice. After the last one, the process has the number that it had before.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        with _lock:
            if not _open:
                _before[:] = [torch.get_num_threads()]
            _open.append(self)
            torch.set_num_threads(threads)

    def release(self) -> None:
        """Give the number up."""
        with _lock:
            if self in _open:
                _open.remove(self)
                torch.set_num_threads(_open[-1].threads if _open else _before[0])
