"""The few CUDA runtime calls that the TensorRT engine needs, with errors as exceptions. Needs `cuda-bindings`.

Imported by the engine alone, after the driver was found: nothing here runs on a machine without a GPU.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from cuda.bindings import runtime as cudart
from numpy.typing import NDArray


def check(result: tuple[Any, ...]) -> Any:
    """The value of a CUDA call, which answers with its error first.

    Raises:
        RuntimeError: CUDA's own words.
    """
    error, *values = result
    if int(error) != 0:
        text = cudart.cudaGetErrorString(error)[1]
        raise RuntimeError(f"CUDA: {text.decode() if isinstance(text, bytes) else text}")
    return values[0] if values else None


class PinnedBuffer:
    """Page-locked host memory and device memory of one size; copies between them do not block the host."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        """Allocate for arrays up to `shape`; the first axis is the batch."""
        self.dtype = np.dtype(dtype)
        self.bytes = max(1, int(np.prod(shape))) * self.dtype.itemsize
        self.device = int(check(cudart.cudaMalloc(self.bytes)))
        self._host = int(check(cudart.cudaMallocHost(self.bytes)))
        raw = (ctypes.c_byte * self.bytes).from_address(self._host)
        self._flat: NDArray[Any] = np.ctypeslib.as_array(raw).view(self.dtype)

    def host(self, shape: tuple[int, ...]) -> NDArray[Any]:
        """The first elements of the host side, in a shape; a view."""
        return self._flat[: int(np.prod(shape))].reshape(shape)

    def upload(self, array: NDArray[Any], stream: int) -> None:
        """Copy an array in, and start its way to the device."""
        np.copyto(self.host(array.shape), array)
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        check(cudart.cudaMemcpyAsync(self.device, self._host, array.nbytes, kind, stream))

    def download(self, shape: tuple[int, ...], stream: int) -> None:
        """Start the way of an array of that shape back; valid in `host` when the stream has come so far."""
        size = int(np.prod(shape)) * self.dtype.itemsize
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        check(cudart.cudaMemcpyAsync(self._host, self.device, size, kind, stream))

    def free(self) -> None:
        """Give both back."""
        check(cudart.cudaFree(self.device))
        check(cudart.cudaFreeHost(self._host))


class Stream:
    """A CUDA stream and an event that marks a place on it."""

    def __init__(self) -> None:
        self.handle = int(check(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking)))

    def mark(self, event: Any) -> None:
        """Record an event here."""
        check(cudart.cudaEventRecord(event, self.handle))

    def wait(self, event: Any) -> None:
        """Let what comes next on this stream wait for an event of another."""
        check(cudart.cudaStreamWaitEvent(self.handle, event, 0))

    def synchronise(self) -> None:
        """Wait until everything on it is done."""
        check(cudart.cudaStreamSynchronize(self.handle))

    def free(self) -> None:
        """Destroy it."""
        check(cudart.cudaStreamDestroy(self.handle))


class CapturedGraph:
    """What one callable puts on a stream, recorded once and launched as a whole."""

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
        """Put it on a stream."""
        check(cudart.cudaGraphLaunch(self._exec, stream.handle))

    def free(self) -> None:
        """Destroy it."""
        check(cudart.cudaGraphExecDestroy(self._exec))


def new_event() -> Any:
    """An event that knows its time."""
    return check(cudart.cudaEventCreateWithFlags(cudart.cudaEventDefault))


def seconds_between(earlier: Any, later: Any) -> float:
    """Seconds from one event to another; both have come."""
    return float(check(cudart.cudaEventElapsedTime(earlier, later))) / 1e3


def wait_for(event: Any) -> None:
    """Block the host until an event has come."""
    check(cudart.cudaEventSynchronize(event))


def free_event(event: Any) -> None:
    """Destroy it."""
    check(cudart.cudaEventDestroy(event))


def allocate(size: int) -> int:
    """Device memory."""
    return int(check(cudart.cudaMalloc(max(size, 1))))


def release(pointer: int) -> None:
    """Give device memory back."""
    check(cudart.cudaFree(pointer))
