"""Buffer pool: allocates large arrays and reuses their memory after garbage collection.

Memory that is returned to the operating system has to be mapped and cleared again page by page on the next first write;
a virtual machine with free page reporting has to obtain it from the host as well. For the arrays of a CT this takes as
long as decompressing the file (`docs/performance-history.md`).

A block is reused only after the last reference to its array, views included, has been dropped. No explicit release is
needed, and an array never changes while it is referenced.
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
"""Smaller arrays are allocated by numpy; the heap keeps their memory anyway."""
MAX_SIZE_RATIO = 2
"""A free block is used only if it is at most this many times larger than requested."""


class ArrayAllocator(Protocol):
    """Signature of `numpy.empty`."""

    def __call__(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return an uninitialised array."""


class BufferPool:
    """Thread-safe pool of memory blocks for arrays.

    Blocks in use and free blocks together never exceed the peak of the blocks in use.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._free: list[NDArray[np.uint8]] = []
        self._returned: deque[NDArray[np.uint8]] = deque()
        """Blocks returned by finalisers. A finaliser can run at any point, even while this thread holds the lock, so it
        only appends here; `deque.append` is atomic."""
        self._in_use_bytes = 0
        self._peak_bytes = 0

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return an uninitialised C-contiguous array, like `numpy.empty`."""
        size = prod(shape) * np.dtype(dtype).itemsize
        if size < MIN_POOLED_BYTES:
            return np.empty(shape, dtype)
        block = self._take_block(size)
        owner = (ctypes.c_char * size).from_buffer(block.data)
        # Every view keeps `owner` alive, so its finaliser runs after the last view is gone. The block itself cannot
        # carry the finaliser, because the finaliser refers to it.
        weakref.finalize(owner, self._returned.append, block).atexit = False
        return np.frombuffer(memoryview(owner), dtype).reshape(shape)

    @property
    def free_bytes(self) -> int:
        """Total size of the free blocks in bytes."""
        with self._lock:
            self._collect_returned()
            return sum(block.nbytes for block in self._free)

    def _take_block(self, size: int) -> NDArray[np.uint8]:
        with self._lock:
            self._collect_returned()
            # Best fit: the smallest free block that is large enough.
            candidates = [b for b in self._free if size <= b.nbytes <= MAX_SIZE_RATIO * size]
            block = min(candidates, key=lambda b: b.nbytes) if candidates else np.empty(size, np.uint8)
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
        """Release the oldest free blocks while the pool exceeds the peak of the blocks in use."""
        while self._free and self._in_use_bytes + sum(b.nbytes for b in self._free) > self._peak_bytes:
            self._free.pop(0)
