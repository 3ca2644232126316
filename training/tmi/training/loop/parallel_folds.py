"""Folds trained at the same time, each in a process of its own on a device of its own or a share of the CPU.

A fold's draws follow from (seed, fold, epoch), so it comes out as when folds are trained one after another; bit for bit
where the kind of device and torch's number of threads are the same. This process trains nothing: it deals out folds
and shows their progress. A GPU is dealt out by its place in CUDA_VISIBLE_DEVICES; on a CPU the threads are divided.

Ctrl-C kills the processes, as a power cut would: checkpoints are written whole or not at all. A process that loses this
one ends itself, so that nothing goes on writing where a resumed run writes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

import torch.multiprocessing

from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import TmiError, UnavailableError
from tmi.toolkit.run_folder import FoldFolder, FoldSplit
from tmi.training.data.dataset import CohortArrays
from tmi.training.loop.distributed import MappedArray, restore_mapped_ct, strip_mapped_ct
from tmi.training.loop.fold_training import EpochCallback, train_fold
from tmi.training.loop.hardware import HardwareConfig

if TYPE_CHECKING:
    from tmi.training.pretrained.initial_weights import InitialWeights

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
FoldFailedCallback = Callable[[FoldSplit, str], None]
"""Called when a fold fails, with the reason; the others go on."""


class FoldFailedError(RuntimeError):
    """A fold ended otherwise than by one of our errors; its arguments are one line, and the traceback where known."""


@dataclass(frozen=True, kw_only=True)
class _DeviceAssignment:
    """What a process computes on."""

    threads: int
    """Of torch."""
    visible_gpu: str | None
    """The one GPU that it sees; None leaves the machine's as they are."""


@dataclass(frozen=True, kw_only=True)
class _Worker:
    """A fold that is being trained."""

    split: FoldSplit
    device: _DeviceAssignment
    process: Any
    receiver: Connection
    epoch_callback: EpochCallback


def assign_devices(hardware: HardwareConfig, *, workers: int) -> list[_DeviceAssignment]:
    """Where each of so many processes computes: GPUs in turn, or a share of this process's threads."""
    total = torch.get_num_threads()
    if hardware.accelerator != "gpu":
        return [_DeviceAssignment(threads=max(1, total // workers), visible_gpu=None)] * workers
    named = os.environ.get(VISIBLE_DEVICES, "")
    gpus = [part.strip() for part in named.split(",") if part.strip()] or [
        str(number) for number in range(torch.cuda.device_count())
    ]
    return [
        _DeviceAssignment(threads=max(1, total // workers), visible_gpu=gpus[k % len(gpus)]) for k in range(workers)
    ]


def train_folds_in_parallel(
    splits: Sequence[FoldSplit],
    arrays: CohortArrays,
    config: Config,
    folder: Callable[[int], FoldFolder],
    *,
    tokenizer: Tokenizer | None,
    initial: InitialWeights | None,
    hardware: HardwareConfig,
    epoch_callback: Callable[[FoldSplit], EpochCallback],
    on_fold_failed: FoldFailedCallback,
) -> None:
    """Train folds, `running.parallel_folds` at a time.

    Args:
        splits: the folds.
        arrays: the cohort; CTs in memory are copied to every process, those in a file are mapped.
        config: settings of the run.
        folder: files of a fold by its number.
        tokenizer: a given one; None trains one on each fold's training texts.
        initial: weights to start from.
        hardware: devices and trackers.
        epoch_callback: a fold begins; the result is told of every epoch.
        failed: told of every fold that fails.

    Raises:
        KeyboardInterrupt: Ctrl-C; every fold's last whole epoch is there.
        TmiError: a fold failed in a way that is known; the others were trained.
        FoldFailedError: a fold failed otherwise; the others were trained.
    """
    free = assign_devices(hardware, workers=min(hardware.parallel_folds, config.train.folds))
    small, mapped = strip_mapped_ct(arrays)
    alone = replace(hardware, parallel_folds=1)
    waiting, busy, errors = list(splits), list[_Worker](), list[Exception]()
    context = torch.multiprocessing.get_context("spawn")

    def begin(split: FoldSplit, device: _DeviceAssignment) -> _Worker:
        receiver, sender = context.Pipe(duplex=False)
        payload = (small, mapped, split, config, folder(split.fold), tokenizer, alone, initial)
        process = context.Process(target=_train, args=(sender, device, payload), name=f"fold {split.fold}", daemon=True)
        worker = _Worker(
            split=split, device=device, process=process, receiver=receiver, epoch_callback=epoch_callback(split)
        )
        busy.append(worker)
        process.start()
        sender.close()
        return worker

    try:
        while waiting or busy:
            while waiting and free:
                begin(waiting.pop(0), free.pop(0))
            for connection in wait([worker.receiver for worker in busy]):
                worker = next(w for w in busy if w.receiver is connection)
                end = _receive_message(worker)
                if end is None:
                    continue
                busy.remove(worker)
                free.append(worker.device)
                if isinstance(end, Exception):
                    errors.append(end)
                    on_fold_failed(worker.split, failure_reason(end))
    finally:
        for worker in busy:
            if worker.process.is_alive():
                worker.process.kill()
            if worker.process.pid is not None:
                worker.process.join()
    if errors:
        raise errors[0]


def _receive_message(worker: _Worker) -> Exception | str | None:
    """Take one message of a process: None goes on, an error failed, `done` is done."""
    try:
        what, content = worker.receiver.recv()
    except (EOFError, OSError):
        what, content = "failed", None
    if what == "epoch":
        worker.epoch_callback(*content)
        return None
    worker.process.join()
    if what == "done":
        return "done"
    return content if isinstance(content, Exception) else _died(worker.split.fold, worker.process.exitcode)


def _died(fold: int, code: int) -> Exception:
    if code == -signal.SIGKILL:
        return UnavailableError(
            f"fold {fold}: its process was killed, as one is when the machine has no memory left",
            fix="continue with --resume and fewer --parallel-folds",
        )
    return FoldFailedError(f"fold {fold}: its process ended with exit code {code}")


def _train(sender: Connection, device: _DeviceAssignment, payload: tuple[Any, ...]) -> None:
    """Train one fold in this process and tell of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends Ctrl-C to all; the first process answers it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if device.visible_gpu is not None:
        os.environ[VISIBLE_DEVICES] = device.visible_gpu
    torch.set_num_threads(device.threads)
    arrays, mapped, split, config, files, tokenizer, hardware, initial = payload
    try:
        _train_one(sender, arrays, mapped, split, config, files, tokenizer, hardware, initial)
    except Exception as error:  # noqa: BLE001 - whatever it is, the other folds go on and the run says it
        sender.send(("failed", _picklable_error(split.fold, error)))
    else:
        sender.send(("done", None))


def _train_one(
    sender: Connection,
    arrays: CohortArrays,
    mapped: MappedArray | None,
    split: FoldSplit,
    config: Config,
    files: FoldFolder,
    tokenizer: Tokenizer | None,
    hardware: HardwareConfig,
    initial: InitialWeights | None,
) -> None:
    train_fold(
        restore_mapped_ct(arrays, mapped),
        split,
        config,
        files,
        tokenizer=tokenizer,
        accelerator=hardware.accelerator,
        epoch_callback=lambda *epoch: sender.send(("epoch", epoch)),
        initial=initial,
        hardware=hardware,
    )


def _picklable_error(fold: int, error: Exception) -> Exception:
    """What crosses the border: our own errors whole, of others, which may not be pickled, kind and traceback."""
    if isinstance(error, TmiError):
        return error
    told = "".join(traceback.format_exception(error))
    return FoldFailedError(f"fold {fold}: unexpected {type(error).__name__}", told)


def failure_reason(error: Exception) -> str:
    """What is told, with the mend; of an unexpected error its kind alone, whose text may hold anything."""
    return f"{error}\n  fix: {error.fix}" if isinstance(error, TmiError) else str(error.args[0])


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
