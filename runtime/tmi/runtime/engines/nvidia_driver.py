"""Detect an NVIDIA GPU and its driver through the driver library, before any TensorRT runtime is loaded.

Some TensorRT runtimes crash the process if they load an engine on a machine without a driver.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import re
from dataclasses import dataclass

from tmi.toolkit.errors import UnavailableError

LIBRARIES = ("libcuda.so.1", "nvcuda.dll")
"""Driver library on Linux and on Windows; only the driver installs it."""
MAJOR, MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """The first GPU and its driver."""

    name: str
    """Name reported by the driver."""
    compute_capability: tuple[int, int]
    """For example (8, 0)."""
    cuda: tuple[int, int]
    """Newest CUDA version that the driver supports."""

    @property
    def target(self) -> str:
        """For example `sm80`."""
        return "sm{}{}".format(*self.compute_capability)


def find_gpu() -> Gpu | None:
    """The first GPU; None without a driver or a GPU."""
    driver = _driver()
    if driver is None or driver.cuInit(0) != 0:
        return None
    count, version, device = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return None
    name = ctypes.create_string_buffer(256)
    driver.cuDriverGetVersion(ctypes.byref(version))
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetName(name, len(name), device)
    capability = []
    for attribute in (MAJOR, MINOR):
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(value.value)
    return Gpu(
        name=name.value.decode(errors="replace"),
        compute_capability=(capability[0], capability[1]),
        cuda=(version.value // 1000, version.value % 1000 // 10),  # 13020 is CUDA 13.2
    )


def require_gpu(what: str) -> Gpu:
    """The first GPU.

    Args:
        what: what needs the GPU, for the error message.

    Raises:
        UnavailableError: no GPU or no driver.
    """
    gpu = find_gpu()
    if gpu is None:
        raise UnavailableError(
            f"{what} needs an NVIDIA GPU with its driver, and this machine has none",
            fix="run it on a machine where `nvidia-smi` lists a GPU (in a container: start it with --gpus all), "
            "or choose --engine openvino or onnx, which run on any CPU",
        )
    return gpu


def driver_incompatibility(package: str, gpu: Gpu) -> str | None:
    """Reason why the driver cannot run an installed TensorRT; None if it can, or if that is unknown.

    The name of the distribution with a wheel's libraries holds the CUDA version it was built for, for example
    `tensorrt_cu13_libs`. A container's TensorRT has no such distribution; its compatibility is left to its runtime.

    Args:
        package: import name, `tensorrt` or `tensorrt_rtx`.
        gpu: the GPU of this machine.
    """
    for name in sorted(_distributions()):
        match = re.fullmatch(rf"{package}_cu(\d+)(_libs|_bindings)?", name)
        if match and gpu.cuda[0] < int(match[1]):
            supported = "{}.{}".format(*gpu.cuda)
            return (
                f"{name} needs a driver for CUDA {match[1]}, the driver of {gpu.name} supports CUDA {supported} at most"
            )
    return None


def require_driver(package: str, gpu: Gpu) -> None:
    """Require a driver that is recent enough for the CUDA version of an installed TensorRT.

    Raises:
        UnavailableError: the driver is too old; some TensorRT runtimes would crash.
    """
    reason = driver_incompatibility(package, gpu)
    if reason is not None:
        raise UnavailableError(
            reason,
            fix=f"install a newer NVIDIA driver (`nvidia-smi` shows the CUDA version that it supports), or {package} "
            f"for CUDA {gpu.cuda[0]}",
        )


def _distributions() -> set[str]:
    """Names of the installed distributions, normalised as in wheel file names."""
    names = (d.metadata["Name"] for d in importlib.metadata.distributions())
    return {re.sub(r"[-_.]+", "_", name).lower() for name in names if name}


def _driver() -> ctypes.CDLL | None:
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None
