"""Pass checked bytes to a library that needs less memory if it opens a path than if it gets the bytes.

ONNX Runtime and OpenVINO copy a graph that is passed as bytes up to twice more while they load it. On Linux the bytes
are therefore written into an anonymous file, sealed against any change, and the library opens that. The cost against
the file itself is once the size of the graph, until it is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SEALS = ("F_SEAL_SEAL", "F_SEAL_SHRINK", "F_SEAL_GROW", "F_SEAL_WRITE")
"""Seals of the anonymous file: nobody can change it, not even through another descriptor."""


@contextmanager
def memory_file(read: Callable[[], bytes]) -> Iterator[str | bytes]:
    """What a library loads: the path of a sealed file in memory, or the bytes on systems without such files.

    Args:
        read: returns the bytes.
    """
    if not hasattr(os, "memfd_create") or not os.path.isdir("/proc/self/fd"):
        yield read()
        return
    import fcntl

    descriptor = os.memfd_create("graph", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        data = read()
        written = 0
        while written < len(data):  # one write takes at most 2 GiB
            written += os.write(descriptor, memoryview(data)[written:])
        del data
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, sum(getattr(fcntl, name) for name in SEALS))
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
