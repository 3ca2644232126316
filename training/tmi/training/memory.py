"""What a training step needs of a device's memory, computed from the sizes of the layers without running one.

    needed = parameters * (4 weight + 4 gradient + 8 Adam [+ 2 half-precision copy])       frozen ones: 4 [+ 2]
           + what autograd keeps of one batch for the backward pass
           + twice the largest of these tensors: the gradients of a layer's output and input, there at the same time
           + the batch itself

The second term comes from a forward pass on torch's meta device, which has shapes and no data: every tensor that an
operator saves for its backward pass is counted once, in its own type. In mixed precision the CT encoder's floats count
half; the rest of the network keeps float32 around its LayerNorms and softmaxes and counts whole. On a CPU, where torch
has no max pooling in bfloat16 under autocast, the pooling's input is there in float32 as well. With checkpointing a
block keeps its input alone, and is there whole, with its own gradients, while it is computed again: the most that any
block takes so, or the largest layer's gradients outside, whichever is more. Not in it: the workspace
of convolution algorithms, fragments of the allocator and the CUDA context.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tmi.toolkit.config import Config
from tmi.training.activation_checkpointing import checkpointable
from tmi.training.freezing import cacheable, frozen_parts, hold_still
from tmi.training.systems.build import encoders, loss_function, make

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes that a training step of one device needs."""

    trained: int
    """Parameters that are trained."""
    frozen: int
    """Parameters that are not."""
    state: int
    """Weights, gradients, Adam's moments, half-precision copies."""
    activations: int
    """What is kept for the backward pass, and the largest layer's gradients."""
    batch: int
    """The inputs."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.state + self.activations + self.batch

    def told(self) -> str:
        """For people."""
        parts = (("parameters and optimiser", self.state), ("activations", self.activations), ("batch", self.batch))
        rows = "".join(f"{name:<26}{size / GIB:8.2f} GiB\n" for name, size in (*parts, ("expected", self.total)))
        return f"{self.trained:,} parameters trained, {self.frozen:,} frozen\n{rows}"


def plan_memory(config: Config, *, devices: int = 1, accelerator: str = "gpu") -> MemoryPlan:
    """The plan of a config on `gpu` or `cpu`; a batch is shared out over `devices`."""
    with torch.device("meta"):
        network: nn.Module = make(config)
        cases = -(-config.train.batch_size // devices)
        batch = _batch(config, cases=cases, network=network)
    for part in frozen_parts(network, config):
        part.requires_grad_(False)
    network.train()
    hold_still(network, config)
    if cases == 1:
        hold_norms_of_vectors(network)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in network.parameters() if not p.requires_grad)
    half = 2 * (trained + frozen) if config.train.precision != "32" else 0
    return MemoryPlan(
        trained=trained,
        frozen=frozen,
        state=16 * trained + 4 * frozen + half,
        activations=_kept(network, batch, config, cpu=accelerator == "cpu"),
        batch=sum(map(_bytes, batch)),
    )


def hold_norms_of_vectors(network: nn.Module) -> None:
    """Put the one-dimensional BatchNorms into evaluation mode: a single vector has no variance to train them by.

    What they keep for the backward pass is the same. With one case a device they are frozen or span the devices.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()


def _batch(config: Config, *, cases: int, network: nn.Module) -> tuple[Tensor, ...]:
    """A batch with the longest text, labels last; a cached encoder gets its own output."""
    cached, sizes = cacheable(network, config), config.network
    text, ct = (cases, config.clinical.max_length), (cases, 1, *config.ct.shape_DHW)
    return (
        torch.empty((cases, sizes.ct_encoder.feature_width) if "ct" in cached else ct),
        torch.empty((cases, sizes.text_encoder.hidden_size))
        if "text" in cached
        else torch.ones(text, dtype=torch.int64),
        torch.ones(text, dtype=torch.int64),
        torch.empty((cases, 1781)),
        torch.zeros(cases, dtype=torch.int64),
    )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the machine has no memory left."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    told = str(error)
    return "allocate memory" in told or "not enough memory" in told or "out of memory" in told


class _Counter:
    """Counts what is saved for the backward pass, each storage once, by whether the CT encoder was running."""

    def __init__(self, leave_out: list[Tensor]) -> None:
        self._seen = {t.untyped_storage()._cdata for t in leave_out}
        self._alive: list[Any] = []
        self.sizes: list[int] = []
        self.in_ct = False
        self.ct_floats = 0
        self.rest = 0
        self.largest = 0
        self.largest_in_ct = False
        self.pooled = 0

    @property
    def total(self) -> int:
        return self.ct_floats + self.rest

    def save(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._alive.append(storage)
            self.sizes.append(storage.nbytes())
            if storage.nbytes() > self.largest:
                self.largest, self.largest_in_ct = storage.nbytes(), self.in_ct
            if self.in_ct and tensor.is_floating_point():
                self.ct_floats += storage.nbytes()
            else:
                self.rest += storage.nbytes()
        return tensor


def _kept(network: nn.Module, batch: tuple[Tensor, ...], config: Config, *, cpu: bool) -> int:
    from tmi.training.freezing import pass_features_through

    there = encoders(network)
    for name in cacheable(network, config):
        pass_features_through(there[name])
    counter = _Counter([*network.parameters(), *network.buffers(), *batch])
    blocks: list[_Block] = []
    _watch(network, there, counter, blocks)
    with torch.autograd.graph.saved_tensors_hooks(counter.save, lambda t: t):
        output = network(*batch[:4])
        loss_function(config)(output, batch[4], config.loss)
    mixed = config.train.precision != "32"

    def weighed(size: int, ct: bool) -> int:
        return size // 2 if mixed and ct else size

    kept = weighed(counter.ct_floats, True) + counter.rest
    gradients = 2 * weighed(counter.largest, counter.largest_in_ct)
    if mixed and cpu:
        kept += counter.pooled
        gradients += counter.largest // 2 * counter.largest_in_ct  # the pooling's, before it is halved
    if not (config.train.activation_checkpointing and blocks):
        return kept + gradients
    kept += sum(weighed(b.entered, b.ct) - weighed(b.inside, b.ct) for b in blocks)
    return kept + max(gradients, *(weighed(b.inside + 2 * b.largest, b.ct) for b in blocks))


@dataclass(frozen=True, kw_only=True)
class _Block:
    """Bytes of a checkpointable block."""

    inside: int
    """What it keeps when it is not checkpointed."""
    largest: int
    """The largest of these tensors."""
    entered: int
    """Its input."""
    ct: bool
    """Whether it is the CT encoder's."""


def _watch(network: nn.Module, there: dict[str, nn.Module], counter: _Counter, blocks: list[_Block]) -> None:
    """Let the counter know when the CT encoder runs and what goes into a pooling, and note every block."""
    before: dict[int, tuple[int, int]] = {}
    if "ct" in there:
        there["ct"].register_forward_pre_hook(lambda *_: setattr(counter, "in_ct", True))
        there["ct"].register_forward_hook(lambda *_: setattr(counter, "in_ct", False))

    def enter(block: nn.Module, args: tuple[Any, ...]) -> None:
        before[id(block)] = counter.total, len(counter.sizes)

    def leave(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        total, first = before[id(block)]
        if counter.total > total:  # a frozen block keeps nothing
            largest = max(counter.sizes[first:])
            blocks.append(
                _Block(inside=counter.total - total, largest=largest, entered=_bytes(args[0]), ct=counter.in_ct)
            )

    for pooling in (m for m in network.modules() if isinstance(m, nn.MaxPool3d)):
        pooling.register_forward_pre_hook(lambda _, args: setattr(counter, "pooled", counter.pooled + _bytes(args[0])))
    for block in checkpointable(network):
        block.register_forward_pre_hook(enter)
        block.register_forward_hook(leave)
