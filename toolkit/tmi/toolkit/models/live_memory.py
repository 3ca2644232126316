"""Memory of a network's tensors, found by running it on torch's meta device, which has shapes but no data.

A storage counts from the operator that allocates it to the release of its last reference, the autograd graph's
included. Not counted: weights and inputs, and what a library takes beside the tensors, such as the workspace of a
convolution.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tmi.toolkit.config.schema import N_RADIOMICS, Config
from tmi.toolkit.models.factory import create_network
from tmi.toolkit.models.multimodal import MultimodalNetwork


@dataclass(frozen=True, kw_only=True)
class MetaNetwork:
    """A network of a config on the meta device, in evaluation mode, with inputs of one case and the longest text."""

    network: MultimodalNetwork
    """The network; no weight requires a gradient."""
    ct: Tensor
    """[1,1,D,H,W]."""
    input_ids: Tensor
    """[1,T]; all tokens are content, so that it is its own attention mask."""
    radiomics: Tensor
    """[1,1781]."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights and buffers."""
        return sum(t.nbytes for t in (*self.network.parameters(), *self.network.buffers()))

    def inference_bytes(self) -> int:
        """Largest number of bytes that live during a forward pass of one case without gradients."""
        with live_bytes() as live, torch.inference_mode():
            self.network(self.ct, self.input_ids, self.input_ids, self.radiomics)
        return live.peak


def meta_network(config: Config) -> MetaNetwork:
    """The network of a config without data.

    Raises:
        UsageError: as in `create_network`.
    """
    with torch.device("meta"):
        return MetaNetwork(
            network=create_network(config).eval().requires_grad_(False),
            ct=torch.empty((1, 1, *config.ct.shape_DHW)),
            input_ids=torch.ones((1, config.clinical.max_length), dtype=torch.int64),
            radiomics=torch.empty((1, N_RADIOMICS)),
        )


class LiveBytes:
    """Bytes of the storages that operators allocated and that are still referenced."""

    def __init__(self) -> None:
        self.peak = 0
        self._now = 0
        self._alive: set[int] = set()

    def add(self, tensor: Tensor) -> None:
        """Count the storage of an operator's output, unless it is counted already."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive.add(key)
            self._now += size
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self._now -= size


class _Counter(TorchDispatchMode):
    """Passes the outputs of every operator to a counter."""

    def __init__(self, live: LiveBytes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._live = live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._live.add(value)
        return out


@contextmanager
def live_bytes() -> Iterator[LiveBytes]:
    """Count the storages that the operators of the block allocate."""
    live = LiveBytes()
    with _Counter(live):
        yield live
