"""What a machine is, as far as arithmetic is concerned: for evidence, and to know a machine again."""

from __future__ import annotations

import importlib.util
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


@cache
def cpu_name() -> str:
    """The processor's name; engines choose their arithmetic by it."""
    if CPUINFO.is_file():
        for line in CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Hardware", "CPU part"):
                return " ".join(value.split())
    return platform.processor() or platform.machine()


def hardware() -> dict[str, str]:
    """Machine, processor and system, without the host's name."""
    return {"machine": platform.machine(), "cpu": cpu_name(), "system": f"{platform.system()} {platform.release()}"}


def package_version(name: str) -> str | None:
    """Version of a distribution, or of the one that installs a module of this name; None where it is not there."""
    if importlib.util.find_spec(name.replace("-", "_")) is None and name != "tmi-clnet":
        return None
    try:
        return version(name)
    except PackageNotFoundError:
        return None
