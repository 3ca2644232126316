"""A fold on several processes, one a device: this one is the node's first, the others are started and ended here.

Lightning finds its rank in LOCAL_RANK and NODE_RANK, so that nothing runs the command line a second time. Several nodes
each run the command with NODE_RANK, MASTER_ADDR and MASTER_PORT set, on a shared file system; node 0 writes.
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

from tmi.training.data.dataset import CohortArrays
from tmi.training.loop.hardware import HardwareConfig

RENDEZVOUS_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True)
class MappedArray:
    """An array that lies in a file: processes map it instead of getting a copy."""

    file: str
    shape: tuple[int, ...]
    offset: int

    def open(self) -> np.ndarray:
        """The array, read only."""
        return np.memmap(self.file, dtype=np.float32, mode="r", shape=self.shape, offset=self.offset)


def strip_mapped_ct(arrays: CohortArrays) -> tuple[CohortArrays, MappedArray | None]:
    """A cohort for another process: without CTs that lie in a file."""
    ct = arrays.ct_N1DHW
    if not isinstance(ct, np.memmap):
        return arrays, None
    mapped = MappedArray(file=str(ct.filename), shape=ct.shape, offset=int(ct.offset))
    return replace(arrays, ct_N1DHW=np.zeros((0, *ct.shape[1:]), dtype=np.float32)), mapped


def restore_mapped_ct(arrays: CohortArrays, mapped: MappedArray | None) -> CohortArrays:
    """The cohort again."""
    return arrays if mapped is None else replace(arrays, ct_N1DHW=mapped.open())


@contextmanager
def spawn_ranks(hardware: HardwareConfig, fold: int, work: Callable[..., None], *payload: Any) -> Iterator[None]:
    """Inside, this process is local rank 0 and the node's other ranks run `work(*payload)`.

    Raises:
        RuntimeError: another rank ended with an error.
    """
    before = {name: os.environ.get(name) for name in RENDEZVOUS_VARIABLES}
    port = os.environ.get("MASTER_PORT")
    environment = {
        "LOCAL_RANK": "0",
        "NODE_RANK": str(hardware.node_rank),
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
        # a port of its own for every fold: the one before may linger
        "MASTER_PORT": str(int(port) + fold) if port else str(_free_port()),
    }
    context = torch.multiprocessing.get_context("spawn")
    children = [
        context.Process(target=_child, args=(environment | {"LOCAL_RANK": str(rank)}, work, payload), daemon=True)
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


def _child(environment: dict[str, str], work: Callable[..., None], payload: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    work(*payload)
    if dist.is_initialized():
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
