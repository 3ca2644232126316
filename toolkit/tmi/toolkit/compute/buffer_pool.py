"""Large arrays whose memory is used again for the next of their kind.

Memory that goes back to the system comes back empty: every page of it is found and cleared anew when it is first
written, and on a virtual machine that reports its free pages the host must find it again as well. For a CT and what is
made of it that takes as long as inflating it (`docs/performance.md`).

An array holds its memory until nothing refers to it any more, no view of it either; only then is it given out again. So
no one has to say when he is done, and no array can change under its reader.
"""

from __future__ import annotations

import ctypes
import weakref
from collections import deque
from math import prod
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

MIN_POOLED_BYTES = 2**20
"""Below this an array is left to numpy: the heap keeps its memory anyway."""
MAX_SIZE_RATIO = 2
"""A free block is not given out for an array that needs less than its part of this."""


class ArrayAllocator(Protocol):
    """What `numpy.empty` does."""

    def __call__(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array whose values are not set."""


class BufferPool:
    """Gives out arrays, and the memory of those that nothing refers to any more again.

    It never holds more, given out and free together, than was given out at one time. Threads may share it.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._free: list[NDArray[np.uint8]] = []
        self._returned: deque[NDArray[np.uint8]] = deque()
        """Came back, and not yet sorted in: a finaliser may run anywhere, also while the lock is held."""
        self._in_use_bytes = 0
        self._peak_bytes = 0

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array whose values are not set, as `numpy.empty` makes it."""
        size = prod(shape) * np.dtype(dtype).itemsize
        if size < MIN_POOLED_BYTES:
            return np.empty(shape, dtype)
        block = self._block(size)
        held = (ctypes.c_char * size).from_buffer(block.data)
        # every view of the array refers to `held`, which refers to the block; a block alone would not tell its end
        weakref.finalize(held, self._returned.append, block).atexit = False
        return np.frombuffer(memoryview(held), dtype).reshape(shape)

    @property
    def free_bytes(self) -> int:
        """Bytes that wait for their next use."""
        with self._lock:
            self._collect_returned()
            return sum(block.nbytes for block in self._free)

    def _block(self, size: int) -> NDArray[np.uint8]:
        with self._lock:
            self._collect_returned()
            fitting = [b for b in self._free if size <= b.nbytes <= MAX_SIZE_RATIO * size]
            block = min(fitting, key=lambda b: b.nbytes) if fitting else np.empty(size, np.uint8)
            self._free = [b for b in self._free if b is not block]
            self._in_use_bytes += block.nbytes
            self._peak_bytes = max(self._peak_bytes, self._in_use_bytes)
            self._trim()
            return block

    def _collect_returned(self) -> None:
        while self._returned:
            block = self._returned.popleft()
            self._in_use_bytes -= block.nbytes
            self._free.append(block)
        self._trim()

    def _trim(self) -> None:
        """Give the oldest back to the system, as far as there is more than was ever needed."""
        while self._free and self._in_use_bytes + sum(b.nbytes for b in self._free) > self._peak_bytes:
            self._free.pop(0)
