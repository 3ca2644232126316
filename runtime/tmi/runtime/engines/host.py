"""Processor, operating system and package versions of this machine, for evidence and for cache keys."""

from __future__ import annotations

import hashlib
import importlib.util
import platform
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


@cache
def cpu_name() -> str:
    """Name of the processor; engines choose their kernels by it."""
    if CPUINFO.is_file():
        for line in CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Hardware", "CPU part"):
                return " ".join(value.split())
    return platform.processor() or platform.machine()


@cache
def cpu_features() -> str:
    """Digest of the processor's instruction sets, which a virtual machine may hide; empty if the system lists none."""
    if CPUINFO.is_file():
        for line in CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                return hashlib.sha256(" ".join(sorted(value.split())).encode()).hexdigest()[:16]
    return ""


def hardware() -> dict[str, str]:
    """Machine type, processor and operating system, without the host name."""
    return {"machine": platform.machine(), "cpu": cpu_name(), "system": f"{platform.system()} {platform.release()}"}


def package_version(name: str) -> str | None:
    """Version of a distribution, or of the one that installs a module of this name; None if it is missing."""
    if importlib.util.find_spec(name.replace("-", "_")) is None and name != "tmi-clnet":
        return None
    # A module can come from a distribution of another name: onnxruntime from onnxruntime-gpu.
    with suppress(PackageNotFoundError):
        return version(name)
    distributions = packages_distributions().get(name.replace("-", "_"), ())
    return version(distributions[0]) if distributions else None
