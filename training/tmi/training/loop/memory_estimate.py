"""What a training step needs of a device's memory, computed from the sizes of the layers without running one.

    needed = parameters * (4 weight + 4 gradient + 8 Adam [+ 2 half-precision copy])       frozen ones: 4 [+ 2]
           + the most that is there at one time of the backward pass: what autograd still keeps of the batch, and twice
             the tensor that it is at, the gradients of a layer's output and input
           + the batch itself

The second term comes from a forward pass on torch's meta device, which has shapes and no data: every tensor that an
operator saves for its backward pass is counted once, in its own type, and freed in the order of the backward pass. In
mixed precision the CT encoder's floats count half; the rest of the network keeps float32 around its LayerNorms and
softmaxes and counts whole. On a CPU, where torch has no max pooling in bfloat16 under autocast, the pooling's input is
there in float32 as well. With checkpointing a block keeps its input alone, and its inside is there while it is computed
again. Not in it: the workspace of convolution algorithms, fragments of the allocator and the CUDA context.
`benchmarks/training_step.py` holds it against steps that were taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tmi.toolkit.config.schema import Config
from tmi.training.loop.activation_checkpointing import checkpointable_blocks
from tmi.training.loop.freezing import cacheable_encoders, frozen_modules, set_frozen_eval
from tmi.training.systems.factory import build_model, encoders, loss_function

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
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

    def summary(self) -> str:
        """For people."""
        parts = (("parameters and optimiser", self.state), ("activations", self.activations), ("batch", self.batch))
        rows = "".join(f"{name:<26}{size / GIB:8.2f} GiB\n" for name, size in (*parts, ("expected", self.total)))
        return f"{self.trained:,} parameters trained, {self.frozen:,} frozen\n{rows}"


def estimate_memory(config: Config, *, devices: int = 1, accelerator: str = "gpu") -> MemoryEstimate:
    """The plan of a config on `gpu` or `cpu`; a batch is shared out over `devices`."""
    with torch.device("meta"):
        network: nn.Module = build_model(config)
        cases = -(-config.train.batch_size // devices)
        batch = _batch(config, cases=cases, network=network)
    for part in frozen_modules(network, config):
        part.requires_grad_(False)
    network.train()
    set_frozen_eval(network, config)
    if cases == 1:
        set_vector_norms_eval(network)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in network.parameters() if not p.requires_grad)
    half = 2 * (trained + frozen) if config.train.precision != "32" else 0
    return MemoryEstimate(
        trained=trained,
        frozen=frozen,
        state=16 * trained + 4 * frozen + half,
        activations=_saved_bytes(network, batch, config, cpu=accelerator == "cpu"),
        batch=sum(map(_bytes, batch)),
    )


def set_vector_norms_eval(network: nn.Module) -> None:
    """Put the one-dimensional BatchNorms into evaluation mode: a single vector has no variance to train them by.

    What they keep for the backward pass is the same. With one case a device they are frozen or span the devices.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()


def _batch(config: Config, *, cases: int, network: nn.Module) -> tuple[Tensor, ...]:
    """A batch with the longest text, labels last; a cached encoder gets its own output."""
    cached, sizes = cacheable_encoders(network, config), config.network
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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the machine has no memory left."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    told = str(error)
    return "allocate memory" in told or "not enough memory" in told or "out of memory" in told


@dataclass(frozen=True, kw_only=True)
class _SavedTensor:
    """Something kept for the backward pass."""

    size: int
    """Bytes."""
    block: int | None
    """The checkpointed block that it is inside of; None: it is kept all the time."""


class _SavedTensorCounter:
    """Notes what is saved for the backward pass in the order of the forward pass, each storage once.

    Args:
        excluded: tensors that are there anyway.
        mixed: in mixed precision, the CT encoder's floats count half.
        checkpointing: what is saved inside a block is there only while the block is computed again.
    """

    def __init__(self, excluded: list[Tensor], *, mixed: bool, checkpointing: bool) -> None:
        self._seen = {t.untyped_storage()._cdata for t in excluded}
        self._alive: list[Any] = []
        self._mixed, self._checkpointing = mixed, checkpointing
        self._block: int | None = None
        self._blocks = 0
        self.in_ct = False
        self.saved: list[_SavedTensor] = []

    def save(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._alive.append(storage)
            self.keep(storage.nbytes(), floats=tensor.is_floating_point())
        return tensor

    def keep(self, size: int, *, floats: bool = True) -> None:
        half = self._mixed and self.in_ct and floats
        self.saved.append(_SavedTensor(size=size // 2 if half else size, block=self._block))

    def pool(self, pooled: Tensor) -> None:
        """On a CPU in mixed precision: what goes into a pooling is there in float32 as well."""
        self.saved.append(_SavedTensor(size=_bytes(pooled), block=self._block))

    def enter(self, entered: Tensor) -> None:
        """A block begins, whose input is kept."""
        if self._checkpointing:
            self.keep(_bytes(entered))
            self._block, self._blocks = self._blocks, self._blocks + 1

    def leave(self) -> None:
        if self._checkpointing:
            if self.saved[-1].block is None:  # a frozen block keeps nothing
                self.saved.pop()
            self._block = None

    def peak_bytes(self) -> int:
        """The most bytes that are there at one time of the backward pass.

        It frees from the end. What is there at each step: all that was saved before, of blocks their inputs alone; of
        the block that is being computed again its inside; and twice the step's own tensor, the gradients of a layer's
        output and input.
        """
        kept, inside, most = 0, 0, 0
        block: int | None = None
        for one in self.saved:
            if one.block is None:
                kept += one.size
                inside = 0
            else:
                inside = one.size + (inside if one.block == block else 0)
            block = one.block
            most = max(most, kept + inside + 2 * one.size)
        return most


def _saved_bytes(network: nn.Module, batch: tuple[Tensor, ...], config: Config, *, cpu: bool) -> int:
    from tmi.training.loop.freezing import bypass_encoder

    there = encoders(network)
    for name in cacheable_encoders(network, config):
        bypass_encoder(there[name])
    mixed = config.train.precision != "32"
    counter = _SavedTensorCounter(
        [*network.parameters(), *network.buffers(), *batch],
        mixed=mixed,
        checkpointing=config.train.activation_checkpointing,
    )
    if "ct" in there:
        there["ct"].register_forward_pre_hook(lambda *_: setattr(counter, "in_ct", True))
        there["ct"].register_forward_hook(lambda *_: setattr(counter, "in_ct", False))
    if mixed and cpu:
        for pooling in (m for m in network.modules() if isinstance(m, nn.MaxPool3d)):
            pooling.register_forward_pre_hook(lambda _, args: counter.pool(args[0]))
    for block in checkpointable_blocks(network):
        block.register_forward_pre_hook(lambda _, args: counter.enter(args[0]))
        block.register_forward_hook(lambda *_: counter.leave())
    with torch.autograd.graph.saved_tensors_hooks(counter.save, lambda t: t):
        output = network(*batch[:4])
        loss_function(config)(output, batch[4], config.loss)
    return counter.peak_bytes()
