"""Gathering of a batch that is distributed over processes, for losses that need the whole batch.

The alignment loss compares every case with every other, and a mean over the batch differs from the mean of the
processes' means if their shares differ in size. Each process therefore gathers the outputs of all processes, replaces
its own part by the tensor that carries the gradient, and computes the loss L of the whole batch. With W processes and
the features f_r of process r, the gradient on process r is (dL/df_r)(df_r/dw); the sum over r is exactly dL/dw.
DistributedDataParallel averages over the processes, so the caller multiplies the loss by W.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def gather_batch(output: Any, labels_B: Tensor) -> tuple[Any, Tensor]:
    """Gather outputs and labels of all processes, in rank order; only this process's part carries a gradient.

    Args:
        output: named tuple of this process's tensors, each [B, ...] or a scalar that is a mean over its share.
        labels_B: labels of this process.

    Returns:
        The output and the labels of the whole batch.
    """
    counts = _share_sizes(len(labels_B), labels_B.device)
    # a scalar is a mean over the share, so it is weighted by the share's size
    gathered = [_mean(t, counts) if t.ndim == 0 else _rows(t, counts) for t in output]
    return type(output)(*gathered), _rows(labels_B, counts)


def _share_sizes(own_size: int, device: torch.device) -> list[int]:
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([own_size], device=device))
    return [int(size) for size in sizes]


def _rows(tensor: Tensor, counts: list[int]) -> Tensor:
    # all_gather needs equal shapes: shares are padded to the largest and cut again
    padded = tensor.detach().new_zeros((max(counts), *tensor.shape[1:]))
    padded[: len(tensor)] = tensor.detach()
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    rows = [part[:count] for part, count in zip(parts, counts, strict=True)]
    rows[dist.get_rank()] = tensor  # all_gather does not propagate gradients; this part does
    return torch.cat(rows)


def _mean(value: Tensor, counts: list[int]) -> Tensor:
    parts = [torch.empty_like(value.detach()) for _ in counts]
    dist.all_gather(parts, value.detach().contiguous())
    parts[dist.get_rank()] = value
    return torch.stack([part * count for part, count in zip(parts, counts, strict=True)]).sum() / sum(counts)
