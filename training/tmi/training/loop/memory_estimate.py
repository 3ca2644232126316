"""Estimate of the device memory of one training step, computed from layer sizes without running a step.

    bytes = parameters * (4 weight + 4 gradient + 8 Adam [+ 2 half-precision copy])       frozen parameters: 4 [+ 2]
          + peak of the backward pass: tensors that autograd still holds, plus twice the current tensor (the gradients
            of a layer's output and input)
          + the batch

The second term comes from a forward pass on torch's meta device, which has shapes but no data. Every tensor that an
operator saves for its backward pass is counted once, in its own dtype, and freed in the order of the backward pass. In
mixed precision the floats of the CT encoder count half; the rest of the network keeps float32 around its LayerNorms and
softmaxes and counts in full. On a CPU, torch has no bfloat16 max pooling under autocast, so a float32 copy of the
pooling input is added. With activation checkpointing a block holds only its input; its activations are added while the
block is recomputed. Not included: workspace of convolution algorithms, allocator fragmentation and the CUDA context.
`benchmarks/training_step.py` compares the estimate with measured steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tmi.toolkit.config.schema import Config, TextEncoderConfig
from tmi.toolkit.models.encoders.bert import TextEncoder
from tmi.training.loop.activation_checkpointing import checkpointable_blocks
from tmi.training.loop.freezing import bypass_encoder, cacheable_encoders, frozen_modules, set_frozen_eval
from tmi.training.systems.factory import build_model, encoders, loss_function

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Memory of a training step on one device, in bytes."""

    trained: int
    """Number of trained parameters."""
    frozen: int
    """Number of frozen parameters."""
    state: int
    """Weights, gradients, Adam's moments and half-precision copies."""
    activations: int
    """Peak of the backward pass: saved tensors and the gradients of the current layer."""
    batch: int
    """Inputs and labels of a batch."""

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.state + self.activations + self.batch

    def summary(self) -> str:
        """Multi-line text with each part in GiB."""
        parts = (("parameters and optimiser", self.state), ("activations", self.activations), ("batch", self.batch))
        rows = "".join(f"{name:<26}{size / GIB:8.2f} GiB\n" for name, size in (*parts, ("expected", self.total)))
        return f"{self.trained:,} parameters trained, {self.frozen:,} frozen\n{rows}"


def estimate_memory(config: Config, *, devices: int = 1, accelerator: str = "gpu") -> MemoryEstimate:
    """Estimate the memory of a training step.

    Args:
        config: settings of the run.
        devices: number of devices that a batch is split over.
        accelerator: `gpu` or `cpu`.
    """
    with torch.device("meta"):
        network: nn.Module = build_model(config)
        cases = -(-config.train.batch_size // devices)  # ceiling: the largest share
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
        state=16 * trained + 4 * frozen + half + (4 * (trained + frozen) if config.train.ema else 0),
        activations=_saved_bytes(network, batch, config, cpu=accelerator == "cpu"),
        batch=sum(map(_bytes, batch)),
    )


def set_vector_norms_eval(network: nn.Module) -> None:
    """Put the one-dimensional BatchNorms into evaluation mode, since a batch of one vector has no variance.

    They save the same tensors for the backward pass. A real run with one case for each device has frozen or
    synchronised BatchNorm.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()


def _batch(config: Config, *, cases: int, network: nn.Module) -> tuple[Tensor, ...]:
    """Batch with texts of maximum length, labels last; a cached encoder gets its own output as input."""
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
    """Whether an error means that the device or the machine is out of memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    message = str(error)
    return any(text in message for text in ("allocate memory", "not enough memory", "out of memory"))


@dataclass(frozen=True, kw_only=True)
class _SavedTensor:
    """A tensor saved for the backward pass."""

    size: int
    """Bytes."""
    block: int | None
    """Number of the checkpointed block that it belongs to; None: it is held until its own backward step."""


class _SavedTensorCounter:
    """Records the tensors saved for the backward pass, in forward order, each storage once.

    Args:
        excluded: tensors that are counted elsewhere (parameters, buffers, inputs).
        mixed: mixed precision; floats of the CT encoder count half.
        checkpointing: tensors saved inside a block exist only while the block is recomputed.
    """

    def __init__(self, excluded: list[Tensor], *, mixed: bool, checkpointing: bool) -> None:
        self._counted = {t.untyped_storage()._cdata for t in excluded}
        self._alive: list[Any] = []  # keeps storages alive: a freed one could reuse a counted address
        self._mixed, self._checkpointing = mixed, checkpointing
        self._block: int | None = None
        self._blocks = 0
        self.in_ct = False
        self.saved: list[_SavedTensor] = []

    def save(self, tensor: Tensor) -> Tensor:
        """Pack hook of `saved_tensors_hooks`."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._counted:
            self._counted.add(storage._cdata)
            self._alive.append(storage)
            self.add(storage.nbytes(), floats=tensor.is_floating_point())
        return tensor

    def add(self, size: int, *, floats: bool = True) -> None:
        """Record a number of bytes."""
        half = self._mixed and self.in_ct and floats
        self.saved.append(_SavedTensor(size=size // 2 if half else size, block=self._block))

    def add_pooling_input(self, pooled: Tensor) -> None:
        """Record the float32 copy of a pooling input (CPU, mixed precision)."""
        self.saved.append(_SavedTensor(size=_bytes(pooled), block=self._block))

    def enter_block(self, block_input: Tensor) -> None:
        """A checkpointed block starts; its input is saved."""
        if self._checkpointing:
            self.add(_bytes(block_input))
            self._block, self._blocks = self._blocks, self._blocks + 1

    def leave_block(self) -> None:
        """The block ends."""
        if self._checkpointing:
            if self.saved[-1].block is None:  # a frozen block saves nothing, not even its input
                self.saved.pop()
            self._block = None

    def peak_bytes(self) -> int:
        """Peak memory of the backward pass in bytes.

        The backward pass frees saved tensors from last to first. At each step memory holds: all tensors saved earlier
        outside of blocks, including the blocks' inputs; the activations of the block that is being recomputed; and
        twice the current tensor, for the gradients of a layer's output and input.
        """
        held, recomputed, peak = 0, 0, 0
        block: int | None = None
        for tensor in self.saved:
            if tensor.block is None:
                held += tensor.size
                recomputed = 0
            else:  # a recomputed block is freed before the one before it is recomputed
                recomputed = tensor.size + (recomputed if tensor.block == block else 0)
            block = tensor.block
            peak = max(peak, held + recomputed + 2 * tensor.size)
        return peak


def _saved_bytes(network: nn.Module, batch: tuple[Tensor, ...], config: Config, *, cpu: bool) -> int:
    """Run a forward pass on the meta device and return the peak of its backward pass in bytes."""
    encoder_of = encoders(network)
    for name in cacheable_encoders(network, config):
        bypass_encoder(encoder_of[name])
    mixed = config.train.precision != "32"
    counter = _SavedTensorCounter(
        [*network.parameters(), *network.buffers(), *batch],
        mixed=mixed,
        checkpointing=config.train.activation_checkpointing,
    )
    if "ct" in encoder_of:
        encoder_of["ct"].register_forward_pre_hook(lambda *_: setattr(counter, "in_ct", True))
        encoder_of["ct"].register_forward_hook(lambda *_: setattr(counter, "in_ct", False))
    if mixed and cpu:
        for pooling in (m for m in network.modules() if isinstance(m, nn.MaxPool3d)):
            pooling.register_forward_pre_hook(lambda _, args: counter.add_pooling_input(args[0]))
    for block in checkpointable_blocks(network):
        block.register_forward_pre_hook(lambda _, args: counter.enter_block(args[0]))
        block.register_forward_hook(lambda *_: counter.leave_block())
    with torch.autograd.graph.saved_tensors_hooks(counter.save, lambda t: t):
        output = network(*batch[:4])
        loss_function(config)(output, batch[4], config.loss)
    return counter.peak_bytes()


def estimate_text_pretraining(config: TextEncoderConfig, *, batch: int, length: int, targets: int) -> int:
    """Bytes of a step of `tmi pretrain-text` on a CPU: weights, gradients, Adam's moments and the backward pass.

    Args:
        config: sizes of the encoder, `vocab_size` included.
        batch: records in a step.
        length: tokens of the longest text.
        targets: outputs of the linear head.
    """
    with torch.device("meta"):
        encoder = TextEncoder(replace(config, dropout=0.0))
        encoder.bert.set_attn_implementation("sdpa")  # as in the pre-training
        head = nn.Linear(config.hidden_size, targets)
        ids = torch.ones((batch, length), dtype=torch.int64)
    encoder.train()
    counter = _SavedTensorCounter(
        [*encoder.parameters(), *encoder.buffers(), *head.parameters(), ids], mixed=False, checkpointing=False
    )
    with torch.autograd.graph.saved_tensors_hooks(counter.save, lambda t: t):
        head(encoder(ids, torch.ones_like(ids))).square().mean()
    trained = sum(p.numel() for p in (*encoder.parameters(), *head.parameters()))
    return 16 * trained + counter.peak_bytes() + 2 * _bytes(ids)
