"""Parallel training of folds: each fold runs in its own process, on its own GPU or on a share of the CPU threads.

Random values of a fold follow from (seed, fold, epoch), so the result equals that of sequential training; bit for bit
if the device type and torch's number of threads are the same. The parent process trains nothing: it assigns folds to
workers and reports their progress. GPUs are assigned by their entry in CUDA_VISIBLE_DEVICES; on a CPU the threads are
divided.

Ctrl-C kills the workers. That is safe because checkpoints are written atomically. A worker whose parent has died exits,
so that it cannot write into a run that is being resumed.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

import torch.multiprocessing

from tmi.toolkit.compute.worker_process import end_with_parent
from tmi.toolkit.errors import TmiError, UnavailableError
from tmi.toolkit.run_folder import FoldFolder, FoldSplit
from tmi.training.loop.distributed import MappedArray, restore_mapped_ct, strip_mapped_ct
from tmi.training.loop.fold_training import EpochCallback, StepCallback, train_fold
from tmi.training.loop.hardware import HardwareConfig
from tmi.training.loop.run_spec import FoldContext

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
_Payload = tuple[FoldContext, MappedArray | None, FoldSplit, FoldFolder]
"""What a worker gets; a CT in a file is sent as its name and place."""
FoldFailedCallback = Callable[[FoldSplit, str], None]
"""Called with a fold that failed and the reason; the other folds continue."""


class FoldFailedError(RuntimeError):
    """A fold failed with an unexpected error; the arguments are one line and, if known, the traceback."""


@dataclass(frozen=True, kw_only=True)
class _DeviceAssignment:
    """Device of one worker process."""

    threads: int
    """Number of torch threads."""
    visible_gpu: str | None
    """Entry of CUDA_VISIBLE_DEVICES for the worker; None leaves the variable unchanged."""


@dataclass(frozen=True, kw_only=True)
class _Worker:
    """A fold in training."""

    split: FoldSplit
    device: _DeviceAssignment
    process: Any
    receiver: Connection
    epoch_callback: EpochCallback
    step_callback: StepCallback


def assign_devices(hardware: HardwareConfig, *, workers: int) -> list[_DeviceAssignment]:
    """Assign a device to each worker: GPUs in round-robin order, or a share of this process's threads."""
    total = torch.get_num_threads()
    if hardware.accelerator != "gpu":
        return [_DeviceAssignment(threads=max(1, total // workers), visible_gpu=None)] * workers
    visible = os.environ.get(VISIBLE_DEVICES, "")
    gpus = [part.strip() for part in visible.split(",") if part.strip()] or [
        str(number) for number in range(torch.cuda.device_count())
    ]
    return [
        _DeviceAssignment(threads=max(1, total // workers), visible_gpu=gpus[k % len(gpus)]) for k in range(workers)
    ]


def train_folds_in_parallel(
    context: FoldContext,
    splits: Sequence[FoldSplit],
    folder: Callable[[int], FoldFolder],
    *,
    epoch_callback: Callable[[FoldSplit], EpochCallback],
    on_fold_failed: FoldFailedCallback,
    on_fold_end: Callable[[FoldSplit], None] = lambda split: None,
    on_step: Callable[[FoldSplit, int, int, int], None] = lambda split, epoch, done, total: None,
) -> None:
    """Train folds, `hardware.parallel_folds` at a time.

    Args:
        context: what the folds share; CTs in memory are copied to every process, CTs in a file are memory-mapped.
        splits: the folds.
        folder: function from the number of a fold to its files.
        epoch_callback: called when a fold starts; its result is called after each epoch.
        on_fold_failed: called for each fold that fails.
        on_fold_end: called for each fold that is finished.
        on_step: called after each batch with its fold, the epoch, the batches done and those of the epoch.

    Raises:
        KeyboardInterrupt: Ctrl-C; the checkpoint of every fold's last complete epoch exists.
        TmiError: a fold failed with one of the project's errors; the other folds were trained.
        FoldFailedError: a fold failed with another error; the other folds were trained.
    """
    hardware = context.hardware
    free = assign_devices(hardware, workers=min(hardware.parallel_folds, context.config.train.folds))
    small, mapped = strip_mapped_ct(context.arrays)
    single = replace(context, arrays=small, hardware=replace(hardware, parallel_folds=1))
    pending, running, errors = list(splits), list[_Worker](), list[Exception]()
    spawning = torch.multiprocessing.get_context("spawn")

    def start(split: FoldSplit, device: _DeviceAssignment) -> _Worker:
        receiver, sender = spawning.Pipe(duplex=False)
        payload = (single, mapped, split, folder(split.fold))
        process = spawning.Process(
            target=_train, args=(sender, device, payload), name=f"fold {split.fold}", daemon=True
        )
        worker = _Worker(
            split=split,
            device=device,
            process=process,
            receiver=receiver,
            epoch_callback=epoch_callback(split),
            step_callback=partial(on_step, split),
        )
        running.append(worker)  # before start(), so that an interrupt in between still ends the process
        process.start()
        sender.close()  # the worker holds the only sender: its death ends the pipe with EOF
        return worker

    try:
        while pending or running:
            while pending and free:
                start(pending.pop(0), free.pop(0))
            for connection in wait([worker.receiver for worker in running]):
                worker = next(w for w in running if w.receiver is connection)
                outcome = _receive_message(worker)
                if outcome is None:
                    continue
                running.remove(worker)
                free.append(worker.device)
                if isinstance(outcome, Exception):
                    errors.append(outcome)
                    on_fold_failed(worker.split, failure_reason(outcome))
                else:
                    on_fold_end(worker.split)
    finally:
        for worker in running:
            if worker.process.is_alive():
                worker.process.kill()
            if worker.process.pid is not None:
                worker.process.join()
    if errors:
        raise errors[0]


def _receive_message(worker: _Worker) -> Exception | str | None:
    """Receive one message of a worker.

    Returns:
        None if the fold continues, `done` if it is finished, the error if it failed.
    """
    try:
        kind, content = worker.receiver.recv()
    except (EOFError, OSError):
        kind, content = "failed", None  # the worker died without a message
    if kind == "epoch":
        worker.epoch_callback(*content)
        return None
    if kind == "step":
        worker.step_callback(*content)
        return None
    worker.process.join()
    if kind == "done":
        return "done"
    return content if isinstance(content, Exception) else _exit_error(worker.split.fold, worker.process.exitcode)


def _exit_error(fold: int, code: int) -> Exception:
    if code == -signal.SIGKILL:
        return UnavailableError(
            f"fold {fold}: its process was killed, which happens when the machine runs out of memory",
            fix="continue with --resume and fewer --parallel-folds",
        )
    return FoldFailedError(f"fold {fold}: its process ended with exit code {code}")


def _train(sender: Connection, device: _DeviceAssignment, payload: _Payload) -> None:
    """Entry point of a worker: train one fold and send its progress and result to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends Ctrl-C to the whole group; the parent handles it
    end_with_parent()
    if device.visible_gpu is not None:
        os.environ[VISIBLE_DEVICES] = device.visible_gpu
    torch.set_num_threads(device.threads)
    context, mapped, split, files = payload
    try:
        context = replace(context, arrays=restore_mapped_ct(context.arrays, mapped))
        train_fold(
            context,
            split,
            files,
            epoch_callback=lambda *epoch: sender.send(("epoch", epoch)),
            step_callback=lambda *step: sender.send(("step", step)),
        )
    except Exception as error:  # noqa: BLE001 - the other folds continue, and the parent reports the error
        sender.send(("failed", _picklable_error(split.fold, error)))
    else:
        sender.send(("done", None))


def _picklable_error(fold: int, error: Exception) -> Exception:
    """Convert an error for the pipe: a `TmiError` as it is; of any other, which may not pickle, type and traceback."""
    if isinstance(error, TmiError):
        return error
    trace = "".join(traceback.format_exception(error))
    return FoldFailedError(f"fold {fold}: unexpected {type(error).__name__}", trace)


def failure_reason(error: Exception) -> str:
    """Message and fix of an error; of an unexpected error only its type, since its text may hold patient data."""
    return f"{error}\n  fix: {error.fix}" if isinstance(error, TmiError) else str(error.args[0])
