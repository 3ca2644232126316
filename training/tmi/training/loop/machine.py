"""Records the machine and the package versions that a fold was trained with: what bit-identical weights depend on."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tmi.runtime.engines.host import cpu_name
from tmi.toolkit.storage.atomic_files import read_json, write_json
from tmi.training.loop.hardware import HardwareConfig

RECORDED_PACKAGES = ("tmi-clnet", "torch", "lightning", "monai", "transformers", "numpy", "scikit-learn", "tokenizers")
"""Packages whose versions are recorded."""


def machine_facts(hardware: HardwareConfig) -> dict[str, Any]:
    """Facts of this process that the last bits of trained weights depend on; it holds no host name."""
    import torch

    return {
        "accelerator": hardware.accelerator,
        "devices": hardware.devices,
        "nodes": hardware.nodes,
        "threads": torch.get_num_threads(),
        "processor": cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if hardware.accelerator == "gpu" else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {package: version(package) for package in RECORDED_PACKAGES},
    }


def record_machine(file: Path, hardware: HardwareConfig) -> None:
    """Add this machine to a fold's record if it is not the last of it: a fold may be resumed on another one."""
    machines = recorded_machines(file)
    facts = machine_facts(hardware)
    if not machines or machines[-1] != facts:
        write_json(file, {"machines": [*machines, facts]})


def recorded_machines(file: Path) -> list[dict[str, Any]]:
    """The machines that a fold was trained on, in their order; empty if an earlier version trained it.

    Raises:
        DamagedError: the record is malformed.
    """
    if not file.is_file():
        return []
    document = read_json(file, kind="run")
    machines = document.get("machines") if isinstance(document, dict) else None
    return [m for m in machines if isinstance(m, dict)] if isinstance(machines, list) else []


def machine_differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Facts that differ: `torch 2.4.0 (now 2.5.1)`."""
    differences = []
    for name, value in now.items():
        before = recorded.get(name)
        if isinstance(value, Mapping):
            differences += machine_differences(before if isinstance(before, Mapping) else {}, value)
        elif before != value:
            differences.append(f"{name} {_shown(before)} (now {_shown(value)})")
    return differences


def _shown(value: Any) -> str:
    return value[:60] if isinstance(value, str) else json.dumps(value)[:60]
