"""The loss of a batch that is spread over processes.

The alignment loss compares every case with every other, and a mean over the batch is no mean of means where the parts
differ in size. So each process gathers the outputs of all, puts its own, which carry the gradient, in their place, and
computes the loss L of the whole batch. With W processes and the features f_r of process r, its gradient is
(dL/df_r)(df_r/dw); their sum is dL/dw exactly. DistributedDataParallel averages over the processes, hence the factor W.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def gather_batch(output: Any, labels_B: Tensor) -> tuple[Any, Tensor]:
    """Output and labels of all processes, in the order of their ranks; only this one's part carries a gradient.

    Args:
        output: a named tuple of tensors [B, ...], or scalars that are means over the batch.
        labels_B: labels of this process.
    """
    counts = _counts(len(labels_B), labels_B.device)
    gathered = [_mean(t, counts) if t.ndim == 0 else _rows(t, counts) for t in output]
    return type(output)(*gathered), _rows(labels_B, counts)


def _counts(own: int, device: torch.device) -> list[int]:
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([own], device=device))
    return [int(size) for size in sizes]


def _rows(tensor: Tensor, counts: list[int]) -> Tensor:
    padded = tensor.detach().new_zeros((max(counts), *tensor.shape[1:]))
    padded[: len(tensor)] = tensor.detach()
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    rows = [part[:count] for part, count in zip(parts, counts, strict=True)]
    rows[dist.get_rank()] = tensor
    return torch.cat(rows)


def _mean(value: Tensor, counts: list[int]) -> Tensor:
    parts = [torch.empty_like(value.detach()) for _ in counts]
    dist.all_gather(parts, value.detach().contiguous())
    parts[dist.get_rank()] = value
    return torch.stack([part * count for part, count in zip(parts, counts, strict=True)]).sum() / sum(counts)
