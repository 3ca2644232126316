"""Compares the memory that a training needs with what the machine has, before anything is prepared.

The need is the estimate of a training step (`tmi.training.loop.memory_estimate`) for every process that shares the
memory, and the cohort's CTs where they are held in memory. If it exceeds what is there, activation checkpointing is
chosen, since it leaves the trained weights unchanged. Settings that change the weights are proposed and never chosen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from tmi.toolkit.compute.memory import AvailableMemory, available_memory, format_memory
from tmi.toolkit.config.schema import Config, TextEncoderConfig
from tmi.toolkit.errors import UnavailableError
from tmi.toolkit.models.registry import configured_model
from tmi.toolkit.run_folder import RUN_FILE, RunFolder
from tmi.toolkit.storage.atomic_files import write_json
from tmi.training.data.dataset import IN_MEMORY_BYTES
from tmi.training.loop.hardware import HardwareConfig

GIB = 2**30
PROCESS_BYTES = GIB // 2
"""Memory of a further process that has torch loaded, and of a CUDA context."""


@dataclass(frozen=True, kw_only=True)
class MemoryFit:
    """A training's need of memory beside what a device has."""

    needed: int
    """Bytes that the training needs with the settings in force."""
    available: int | None
    """Bytes that can still be taken; None if unknown."""
    source: str
    """What limits the memory."""
    checkpointing: bool
    """Whether activation checkpointing was chosen because the training does not fit without it."""
    needed_as_set: int
    """Bytes that the training needs without that choice."""

    def summary(self) -> str:
        """One line on need, available memory and the choice."""
        if self.available is None:
            return f"the training needs about {format_memory(self.needed)}; the machine's free memory is unknown"
        there = f"{format_memory(self.available)} is available ({self.source})"
        if not self.checkpointing:
            return f"the training needs about {format_memory(self.needed)}, and {there}"
        return (
            f"the training needs about {format_memory(self.needed_as_set)}, and {there}: activation checkpointing is "
            f"used, which needs {format_memory(self.needed)}, takes longer and leaves the weights unchanged"
        )

    def document(self) -> dict[str, Any]:
        """Record for run.json."""
        return {
            "needed_bytes": self.needed,
            "available_bytes": self.available,
            "source": self.source,
            "chosen": {"activation_checkpointing": True} if self.checkpointing else {},
        }


def fit_memory(config: Config, hardware: HardwareConfig, *, cases: int = 0) -> MemoryFit | None:
    """Compare a training's need of memory with what each of its devices has left.

    Args:
        config: settings of the run.
        hardware: devices and parallel folds; its `memory` says what may be chosen.
        cases: number of cases of the cohort.

    Returns:
        The comparison; None for a model without a network, and if `hardware.memory` is `unchecked`.

    Raises:
        UnavailableError: the training does not fit; the fix names settings with which it does.
    """
    if hardware.memory == "unchecked" or configured_model(config).trainer == "sklearn":
        return None
    there = _device_memory(hardware)
    as_set = _needed(config, hardware, cases)
    available, source = (None, "unknown") if there is None else (there.size, there.source)
    fit = MemoryFit(needed=as_set, available=available, source=source, checkpointing=False, needed_as_set=as_set)
    if available is None or as_set <= available:
        return fit
    if hardware.memory == "fit":
        checkpointed = _needed(_with_checkpointing(config), hardware, cases)
        if checkpointed <= available:
            return replace(fit, needed=checkpointed, checkpointing=True)
    raise UnavailableError(
        f"the training needs about {format_memory(as_set)} of memory, and {format_memory(available)} is available "
        f"({source})",
        fix=_proposals(config, hardware, cases, available),
    )


def require_text_memory(config: TextEncoderConfig, *, batch: int, length: int, targets: int) -> None:
    """Compare the memory of `tmi pretrain-text` with what the machine has left, before its first step.

    Args:
        config: sizes of the encoder.
        batch: records in a step.
        length: tokens of the longest text.
        targets: outputs of the linear head.

    Raises:
        UnavailableError: it does not fit; the fix names a batch with which it does.
    """
    from tmi.training.loop.memory_estimate import estimate_text_pretraining  # torch

    there = available_memory()
    needed = estimate_text_pretraining(config, batch=batch, length=length, targets=targets)
    if there is None or needed <= there.size:
        return
    found = ["pre-train on a machine with more memory, or with --preset tiny"]
    smaller = batch // 2
    while smaller >= 2:
        if (size := estimate_text_pretraining(config, batch=smaller, length=length, targets=targets)) <= there.size:
            found.insert(0, f"--batch {smaller} ({format_memory(size)}), or")
            break
        smaller //= 2
    raise UnavailableError(
        f"the pre-training needs about {format_memory(needed)} of memory, and {format_memory(there.size)} is available "
        f"({there.source})",
        fix=f"{' '.join(found)}; --no-memory-check pre-trains as it is",
    )


def record_memory(run: RunFolder, fit: MemoryFit) -> None:
    """Record the comparison of a run's latest start in its run.json."""
    write_json(run.path / RUN_FILE, run.state | {"memory": fit.document()})


def effective_config(config: Config, hardware: HardwareConfig) -> Config:
    """The config with what was chosen for this machine's memory."""
    return _with_checkpointing(config) if hardware.checkpointing else config


def _with_checkpointing(config: Config) -> Config:
    return replace(config, train=replace(config.train, activation_checkpointing=True))


def _device_memory(hardware: HardwareConfig) -> AvailableMemory | None:
    """Free memory of the machine, or of the used GPU that has the least."""
    if hardware.accelerator != "gpu":
        return available_memory()
    import torch

    used = range(_gpus(hardware))
    free = {number: torch.cuda.mem_get_info(number)[0] for number in used}
    least = min(free, key=lambda number: free[number])
    return AvailableMemory(size=free[least], source=f"GPU {least}")


def _gpus(hardware: HardwareConfig) -> int:
    import torch

    wanted = hardware.parallel_folds if hardware.parallel_folds > 1 else hardware.devices
    return max(1, min(wanted, torch.cuda.device_count()))


def _needed(config: Config, hardware: HardwareConfig, cases: int) -> int:
    """Bytes on the machine, or on the GPU that has most of the processes."""
    step = _step_bytes(config, hardware.world_size, hardware.accelerator)
    folds = min(hardware.parallel_folds, config.train.folds)
    processes = folds if folds > 1 else hardware.devices
    if hardware.accelerator == "gpu":
        return -(-processes // _gpus(hardware)) * (step + PROCESS_BYTES)
    ct = cases * 4
    for size in config.ct.shape_DHW:
        ct *= size
    held = ct if ct <= IN_MEMORY_BYTES else 0  # larger ones are mapped from a file
    others = processes if folds > 1 else processes - 1  # the parent of parallel folds trains nothing
    copies = processes + 1 if folds > 1 else 1
    return processes * step + others * PROCESS_BYTES + copies * held


@lru_cache(maxsize=64)
def _step_bytes(config: Config, devices: int, accelerator: str) -> int:
    from tmi.training.loop.memory_estimate import estimate_memory  # torch

    return estimate_memory(config, devices=devices, accelerator=accelerator).total


def _proposals(config: Config, hardware: HardwareConfig, cases: int, available: int) -> str:
    """Settings with which the training fits, each with its need."""
    checkpointing = "--set train.activation_checkpointing=true"
    found = []
    for options, changed, on in _changes(config, hardware):
        needed = _needed(changed, on, cases)
        if needed > available and hardware.memory == "fit":  # it would be chosen
            needed = _needed(_with_checkpointing(changed), on, cases)
        elif needed > available and options != checkpointing:
            needed, options = _needed(_with_checkpointing(changed), on, cases), f"{options} {checkpointing}"
        if needed <= available:
            found.append(f"{options} ({format_memory(needed)})")
        if len(found) == 3:
            break
    if found:
        return f"{', or '.join(found)}; --no-memory-check trains as it is"
    return "train on a machine with more memory, or with --preset tiny; --no-memory-check trains as it is"


def _changes(config: Config, hardware: HardwareConfig) -> Iterator[tuple[str, Config, HardwareConfig]]:
    """Options, and config and hardware with them; those that change the result least come first."""
    if hardware.memory != "fit" and not config.train.activation_checkpointing:
        yield "--set train.activation_checkpointing=true", _with_checkpointing(config), hardware
    for folds in range(min(hardware.parallel_folds, config.train.folds) - 1, 0, -1):
        yield f"--parallel-folds {folds}", config, replace(hardware, parallel_folds=folds)
    one = replace(hardware, parallel_folds=1)
    parallel = " --parallel-folds 1" if hardware.parallel_folds > 1 else ""
    half = replace(config, train=replace(config.train, precision="bf16-mixed"))
    if config.train.precision == "32":
        yield f"--precision bf16-mixed{parallel}", half, one
    batch, least = config.train.batch_size, one.world_size * one.min_cases_per_process(config)
    for precision, base in (("", config), *((("--precision bf16-mixed ", half),) if half != config else ())):
        for smaller in dict.fromkeys((batch // 2, batch // 4, max(2, least))):
            if max(2, least) <= smaller < batch:
                accumulate = -(-batch // smaller) * config.train.accumulate
                train = replace(base.train, batch_size=smaller, accumulate=accumulate)
                options = f"--set train.batch_size={smaller} --set train.accumulate={accumulate}"
                yield f"{precision}{options}{parallel}", replace(base, train=train), one
    depth, height, width = config.ct.shape_DHW
    for part in (2, 4, 8):
        shape = (depth, height // part, width // part)
        text = ",".join(map(str, shape))
        if min(shape) >= 16:
            yield f"--set ct.shape_DHW=[{text}]{parallel}", replace(config, ct=replace(config.ct, shape_DHW=shape)), one
