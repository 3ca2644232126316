"""On what a training runs: nothing of it changes what is trained, save the order in which floats are added."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass

from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import UnavailableError, UsageError

TRACKER_MODULES = {"tensorboard": "tensorboard", "mlflow": "mlflow"}
"""Tracker -> the module it needs."""


@dataclass(frozen=True, kw_only=True)
class HardwareConfig:
    """Devices and trackers."""

    accelerator: str
    """`cpu` or `gpu`."""
    devices: int = 1
    """Processes on this node, one a device."""
    nodes: int = 1
    """Machines; each is started with its number in the environment variable NODE_RANK."""
    parallel_folds: int = 1
    """Folds trained at the same time, each in one process on one device."""
    track: tuple[str, ...] = ()
    """Trackers that every epoch is told to, beside history.csv."""

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return self.devices * self.nodes

    @property
    def node_rank(self) -> int:
        """Number of this node."""
        return int(os.environ.get("NODE_RANK", "0")) if self.nodes > 1 else 0

    def min_cases_per_process(self, config: Config) -> int:
        """Fewest cases a process: BatchNorm needs two, unless its statistics are shared (several GPUs) or frozen."""
        return 1 if self.world_size > 1 and (self.accelerator == "gpu" or config.train.frozen_batch_norm) else 2

    def check(self, config: Config) -> None:
        """Refuse what cannot work before anything is prepared.

        Raises:
            UsageError: more devices than a batch has cases for, a precision that the device has not, or folds side by
            side that are spread over devices as well.
            UnavailableError: a tracker's package or a device is not there.
        """
        if self.devices < 1 or self.nodes < 1:
            raise UsageError(f"--devices {self.devices} --nodes {self.nodes}", fix="give 1 or more of each")
        if self.parallel_folds < 1:
            raise UsageError(f"--parallel-folds {self.parallel_folds}", fix="give 1 or more")
        if self.parallel_folds > 1 and self.world_size > 1:
            raise UsageError(
                f"--parallel-folds {self.parallel_folds} trains each fold on one device, and --devices {self.devices} "
                f"--nodes {self.nodes} spreads a fold over {self.world_size}",
                fix="take --parallel-folds, or --devices and --nodes",
            )
        min_cases = self.min_cases_per_process(config) * self.world_size
        if config.train.batch_size < min_cases:
            raise UsageError(
                f"train.batch_size={config.train.batch_size} is shared out over {self.world_size} processes, which need "
                f"{min_cases} cases",
                fix=f"--set train.batch_size={min_cases}, or fewer devices",
            )
        if config.train.precision == "16-mixed" and self.accelerator == "cpu":
            raise UsageError("precision 16-mixed needs a GPU", fix="take bf16-mixed, or --accelerator gpu")
        if self.accelerator == "gpu":
            _require_gpus(self.devices)
        for name in self.track:
            if name not in TRACKER_MODULES:
                raise UsageError(f"unknown tracker {name!r}", fix=f"choose among {', '.join(TRACKER_MODULES)}")
            if importlib.util.find_spec(TRACKER_MODULES[name]) is None:
                raise UnavailableError(f"--track {name} needs the package {TRACKER_MODULES[name]}, which is not installed",
                                       fix="pip install 'tmi-clnet[track]'")  # fmt: skip


def _require_gpus(devices: int) -> None:
    import torch

    there = torch.cuda.device_count()
    if there < devices:
        raise UnavailableError(
            f"--devices {devices}: this machine has {there} GPU(s)", fix=f"--devices {max(there, 1)}"
        )
