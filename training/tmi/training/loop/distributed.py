"""Distributed training of one fold: one process for each device.

The calling process is local rank 0 of its node; it starts and stops the other ranks. Lightning reads the rank from
LOCAL_RANK and NODE_RANK, so it does not run the command line again. With several nodes, each node runs the command
with NODE_RANK, MASTER_ADDR and MASTER_PORT set, on a shared file system; node 0 writes.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch.multiprocessing
from torch import distributed as dist

from tmi.toolkit.compute.worker_process import end_with_parent
from tmi.training.data.dataset import CohortArrays
from tmi.training.loop.hardware import HardwareConfig

RENDEZVOUS_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True)
class MappedArray:
    """A float32 array stored in a file; other processes memory-map it instead of receiving a copy."""

    file: str
    shape: tuple[int, ...]
    offset: int

    def open(self) -> np.ndarray:
        """Memory-map the array read-only."""
        return np.memmap(self.file, dtype=np.float32, mode="r", shape=self.shape, offset=self.offset)


def strip_mapped_ct(arrays: CohortArrays) -> tuple[CohortArrays, MappedArray | None]:
    """Prepare a cohort for another process: CTs that are memory-mapped are replaced by a reference to their file.

    CTs in memory stay in the cohort, and the second return value is None.
    """
    ct = arrays.ct_N1DHW
    if not isinstance(ct, np.memmap):
        return arrays, None
    mapped = MappedArray(file=str(ct.filename), shape=ct.shape, offset=int(ct.offset))
    return replace(arrays, ct_N1DHW=np.zeros((0, *ct.shape[1:]), dtype=np.float32)), mapped


def restore_mapped_ct(arrays: CohortArrays, mapped: MappedArray | None) -> CohortArrays:
    """Inverse of `strip_mapped_ct`."""
    return arrays if mapped is None else replace(arrays, ct_N1DHW=mapped.open())


@contextmanager
def spawn_ranks(hardware: HardwareConfig, fold: int, work: Callable[..., None], *payload: Any) -> Iterator[None]:
    """Context in which this process is local rank 0 and the node's other ranks run `work(*payload)`.

    Args:
        hardware: number of devices and nodes.
        fold: number of the fold; offsets the port.
        work: function of the other ranks; must be picklable.
        *payload: its arguments.

    Raises:
        RuntimeError: another rank exited with an error.
    """
    before = {name: os.environ.get(name) for name in RENDEZVOUS_VARIABLES}
    port = os.environ.get("MASTER_PORT")
    environment = {
        "LOCAL_RANK": "0",
        "NODE_RANK": str(hardware.node_rank),
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
        # a separate port for each fold: the previous one may still be in TIME_WAIT
        "MASTER_PORT": str(int(port) + fold) if port else str(_free_port()),
    }
    context = torch.multiprocessing.get_context("spawn")
    children = [
        context.Process(target=_run_rank, args=(environment | {"LOCAL_RANK": str(rank)}, work, payload), daemon=True)
        for rank in range(1, hardware.devices)
    ]
    try:
        for child in children:
            child.start()
        os.environ.update(environment)
        yield
        for child in children:
            child.join()
            if child.exitcode:
                raise RuntimeError(f"a process of fold {fold} ended with exit code {child.exitcode}")
    finally:
        for child in children:
            if child.is_alive():
                child.terminate()
            if child.pid is not None:
                child.join()
        if dist.is_initialized():
            dist.destroy_process_group()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _run_rank(environment: dict[str, str], work: Callable[..., None], payload: tuple[Any, ...]) -> None:
    end_with_parent()
    os.environ.update(environment)
    work(*payload)
    if dist.is_initialized():
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
