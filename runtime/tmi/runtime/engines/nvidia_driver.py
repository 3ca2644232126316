"""Is there an NVIDIA GPU with a driver? Asked of the driver's own library, before any TensorRT runtime is touched.

Some TensorRT runtimes crash the process when they are asked to load an engine on a machine without a driver.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import re
from dataclasses import dataclass

from tmi.toolkit.errors import UnavailableError

LIBRARIES = ("libcuda.so.1", "nvcuda.dll")
"""The driver's library on Linux and on Windows; it comes with the driver and with nothing else."""
MAJOR, MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """The first GPU and its driver."""

    name: str
    """What the driver calls it."""
    compute_capability: tuple[int, int]
    """For example (8, 0)."""
    cuda: tuple[int, int]
    """The newest CUDA version that the driver can serve."""

    @property
    def target(self) -> str:
        """For example `sm80`."""
        return "sm{}{}".format(*self.compute_capability)


def find_gpu() -> Gpu | None:
    """The first GPU; None where there is no driver, or it finds no GPU."""
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
        cuda=(version.value // 1000, version.value % 1000 // 10),
    )


def require_gpu(what: str) -> Gpu:
    """The first GPU.

    Args:
        what: what needs it, for the error's text.

    Raises:
        UnavailableError: there is none.
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
    """What keeps a driver from serving an installed TensorRT; None where nothing does, or nothing is known.

    A wheel says which CUDA it was built for in the name of the distribution that holds its libraries,
    `tensorrt_cu13_libs` for one. A container's own TensorRT has no such distribution, and its runtime has to judge.

    Args:
        package: import name, `tensorrt` or `tensorrt_rtx`.
        gpu: that is here.
    """
    for name in sorted(_distributions()):
        found = re.fullmatch(rf"{package}_cu(\d+)(_libs|_bindings)?", name)
        if found and gpu.cuda[0] < int(found[1]):
            serves = "{}.{}".format(*gpu.cuda)
            return f"{name} needs a driver for CUDA {found[1]}, the driver of {gpu.name} serves CUDA {serves} at most"
    return None


def require_driver(package: str, gpu: Gpu) -> None:
    """Refuse a driver that is older than the CUDA of an installed TensorRT.

    Raises:
        UnavailableError: it is; some runtimes crash where it is.
    """
    obstacle = driver_incompatibility(package, gpu)
    if obstacle is not None:
        raise UnavailableError(
            obstacle,
            fix=f"install a newer NVIDIA driver (`nvidia-smi` shows the CUDA version that it serves), or {package} for "
            f"CUDA {gpu.cuda[0]}",
        )


def _distributions() -> set[str]:
    """Names of what is installed, as they are normalised for a wheel."""
    names = (d.metadata["Name"] for d in importlib.metadata.distributions())
    return {re.sub(r"[-_.]+", "_", name).lower() for name in names if name}


def _driver() -> ctypes.CDLL | None:
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None
