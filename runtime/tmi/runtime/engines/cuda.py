"""CUDA runtime calls of the TensorRT engine, with errors as exceptions. Needs `cuda-bindings`.

Only the TensorRT engine imports this module, after it found a driver.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from cuda.bindings import runtime as cudart
from numpy.typing import NDArray


def check(result: tuple[Any, ...]) -> Any:
    """Return the value of a CUDA call, whose result starts with the error code.

    Raises:
        RuntimeError: the call failed; with CUDA's message.
    """
    error, *values = result
    if int(error) != 0:
        text = cudart.cudaGetErrorString(error)[1]
        raise RuntimeError(f"CUDA: {text.decode() if isinstance(text, bytes) else text}")
    return values[0] if values else None


class PinnedBuffer:
    """Page-locked host memory and device memory of equal size; copies between them do not block the host."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        """Allocate for arrays up to `shape`, whose first axis is the batch."""
        self.dtype = np.dtype(dtype)
        self.bytes = max(1, int(np.prod(shape))) * self.dtype.itemsize
        self.device = int(check(cudart.cudaMalloc(self.bytes)))
        self._host = int(check(cudart.cudaMallocHost(self.bytes)))
        raw = (ctypes.c_byte * self.bytes).from_address(self._host)
        self._flat: NDArray[Any] = np.ctypeslib.as_array(raw).view(self.dtype)

    def host(self, shape: tuple[int, ...]) -> NDArray[Any]:
        """View of the first elements of the host memory with a shape."""
        return self._flat[: int(np.prod(shape))].reshape(shape)

    def upload(self, array: NDArray[Any], stream: int) -> None:
        """Copy an array to the host memory and start its copy to the device."""
        np.copyto(self.host(array.shape), array)
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        check(cudart.cudaMemcpyAsync(self.device, self._host, array.nbytes, kind, stream))

    def download(self, shape: tuple[int, ...], stream: int) -> None:
        """Start the copy of an array of this shape to the host; `host` is valid once the stream completed it."""
        size = int(np.prod(shape)) * self.dtype.itemsize
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        check(cudart.cudaMemcpyAsync(self._host, self.device, size, kind, stream))

    def free(self) -> None:
        """Free both buffers."""
        check(cudart.cudaFree(self.device))
        check(cudart.cudaFreeHost(self._host))


class Stream:
    """A CUDA stream."""

    def __init__(self) -> None:
        self.handle = int(check(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking)))

    def mark(self, event: Any) -> None:
        """Record an event on this stream."""
        check(cudart.cudaEventRecord(event, self.handle))

    def wait(self, event: Any) -> None:
        """Make later work on this stream wait for an event of another stream."""
        check(cudart.cudaStreamWaitEvent(self.handle, event, 0))

    def synchronise(self) -> None:
        """Block the host until all work on this stream is complete."""
        check(cudart.cudaStreamSynchronize(self.handle))

    def free(self) -> None:
        """Destroy the stream."""
        check(cudart.cudaStreamDestroy(self.handle))


class CapturedGraph:
    """CUDA graph of the work that a callable enqueues on a stream; recorded once, launched as a whole."""

    def __init__(self, stream: Stream, work: Any) -> None:
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check(cudart.cudaStreamBeginCapture(stream.handle, mode))
        try:
            work()
        finally:
            graph = check(cudart.cudaStreamEndCapture(stream.handle))
        self._exec = check(cudart.cudaGraphInstantiate(graph, 0))
        check(cudart.cudaGraphDestroy(graph))

    def launch(self, stream: Stream) -> None:
        """Enqueue the graph on a stream."""
        check(cudart.cudaGraphLaunch(self._exec, stream.handle))

    def free(self) -> None:
        """Destroy the graph."""
        check(cudart.cudaGraphExecDestroy(self._exec))


def new_event() -> Any:
    """Create an event that records its time."""
    return check(cudart.cudaEventCreateWithFlags(cudart.cudaEventDefault))


def seconds_between(earlier: Any, later: Any) -> float:
    """Seconds between two completed events."""
    return float(check(cudart.cudaEventElapsedTime(earlier, later))) / 1e3


def wait_for(event: Any) -> None:
    """Block the host until an event is complete."""
    check(cudart.cudaEventSynchronize(event))


def free_event(event: Any) -> None:
    """Destroy an event."""
    check(cudart.cudaEventDestroy(event))


def allocate(size: int) -> int:
    """Allocate device memory; returns its address."""
    return int(check(cudart.cudaMalloc(max(size, 1))))


def release(pointer: int) -> None:
    """Free device memory."""
    check(cudart.cudaFree(pointer))
