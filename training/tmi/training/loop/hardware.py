"""Hardware settings of a training run. They change results only by floating-point summation order."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import UnavailableError, UsageError

ACCELERATORS = ("auto", "cpu", "gpu")
"""Values of `--accelerator`."""
TRACKER_MODULES = {"tensorboard": "tensorboard", "mlflow": "mlflow"}
"""Tracker -> module that it imports."""


@dataclass(frozen=True, kw_only=True)
class HardwareConfig:
    """Devices, parallel folds and experiment trackers."""

    accelerator: str
    """`cpu` or `gpu`."""
    devices: int = 1
    """Processes on this node, one for each device."""
    nodes: int = 1
    """Machines; the environment variable NODE_RANK holds the number of each."""
    parallel_folds: int = 1
    """Folds trained at the same time, each in one process on one device."""
    track: tuple[str, ...] = ()
    """Experiment trackers that log every epoch, in addition to history.csv."""
    memory: Literal["fit", "as-set", "unchecked"] = "fit"
    """What is done about a training that needs more memory than there is: `fit` chooses activation checkpointing if it
    then fits, and rejects the training otherwise; `as-set` rejects it; `unchecked` compares nothing."""
    checkpointing: bool = False
    """Whether activation checkpointing was chosen for this machine's memory; it does not change the weights."""

    @property
    def world_size(self) -> int:
        """Total number of processes."""
        return self.devices * self.nodes

    @property
    def node_rank(self) -> int:
        """Number of this node."""
        return int(os.environ.get("NODE_RANK", "0")) if self.nodes > 1 else 0

    def min_cases_per_process(self, config: Config) -> int:
        """Minimum number of cases for each process.

        BatchNorm needs two, unless its statistics are synchronised (several GPUs) or frozen.
        """
        return 1 if self.world_size > 1 and (self.accelerator == "gpu" or config.train.frozen_batch_norm) else 2

    def check(self, config: Config) -> None:
        """Reject settings that cannot work before any case is prepared.

        Raises:
            UsageError: more devices than a batch has cases for, a precision that the device does not support, or
                parallel folds combined with several devices for each fold.
            UnavailableError: a tracker's package is not installed, or a device does not exist.
        """
        require_hardware_options(
            self.accelerator, self.devices, nodes=self.nodes, parallel_folds=self.parallel_folds, track=self.track
        )
        min_cases = self.min_cases_per_process(config) * self.world_size
        if config.train.batch_size < min_cases:
            raise UsageError(
                f"train.batch_size={config.train.batch_size} is split over {self.world_size} processes, which need "
                f"at least {min_cases} cases",
                fix=f"--set train.batch_size={min_cases}, or fewer devices",
            )
        if config.train.precision == "16-mixed" and self.accelerator == "cpu":
            raise UsageError("precision 16-mixed needs a GPU", fix="use bf16-mixed, or --accelerator gpu")
        if self.accelerator == "gpu":
            _require_gpus(self.devices)


def require_hardware_options(
    accelerator: str, devices: int, *, nodes: int = 1, parallel_folds: int = 1, track: Sequence[str] = ()
) -> None:
    """Check the options of the hardware as far as no device has to be asked, without torch.

    Raises:
        UsageError: an unknown accelerator or tracker, a number below 1, or parallel folds combined with several devices
            for each fold.
        UnavailableError: a tracker's package is not installed.
    """
    if accelerator not in ACCELERATORS:
        raise UsageError(f"unknown accelerator {accelerator!r}", fix="choose cpu, gpu or auto")
    if devices < 1 or nodes < 1:
        raise UsageError(f"--devices {devices} --nodes {nodes}", fix="give 1 or more of each")
    if parallel_folds < 1:
        raise UsageError(f"--parallel-folds {parallel_folds}", fix="give 1 or more")
    if parallel_folds > 1 and devices * nodes > 1:
        raise UsageError(
            f"--parallel-folds {parallel_folds} trains each fold on one device, and --devices {devices} "
            f"--nodes {nodes} distributes a fold over {devices * nodes}",
            fix="use either --parallel-folds, or --devices and --nodes",
        )
    for name in track:
        if name not in TRACKER_MODULES:
            raise UsageError(f"unknown tracker {name!r}", fix=f"choose from {', '.join(TRACKER_MODULES)}")
        if importlib.util.find_spec(TRACKER_MODULES[name]) is None:
            raise UnavailableError(
                f"--track {name} needs the package {TRACKER_MODULES[name]}, which is not installed",
                fix="pip install 'tmi-clnet[track]'",
            )


def resolve_accelerator(requested: str) -> Literal["cpu", "gpu"]:
    """Resolve `cpu`, `gpu` or `auto` to a device type; `auto` selects a GPU if one is available.

    An explicit choice is never replaced by another device.

    Raises:
        UsageError: unknown choice.
        UnavailableError: `gpu` was requested and no GPU is usable.
    """
    require_hardware_options(requested, 1)

    import torch

    available = torch.cuda.is_available()
    if requested == "gpu" and not available:
        raise UnavailableError("no GPU that torch can use", fix="install the CUDA build of torch, or --accelerator cpu")
    return "gpu" if available and requested != "cpu" else "cpu"


def _require_gpus(devices: int) -> None:
    import torch

    available = torch.cuda.device_count()
    if available < devices:
        raise UnavailableError(
            f"--devices {devices}: this machine has {available} GPU(s)", fix=f"--devices {max(available, 1)}"
        )
