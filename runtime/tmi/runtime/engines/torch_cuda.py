"""NVIDIA GPU through torch, for the engines `eager-cuda` and `torchscript-cuda`. Imports torch inside its functions.

By default torch lets cuDNN compute float32 convolutions in TF32, with 10 bits of mantissa instead of 23. The engines
are compared with a float32 reference, so they compute in full float32, with deterministic kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

DEVICE = "cuda"


@cache
def missing_cuda() -> str | None:
    """The requirement of the CUDA engines that the installed torch does not meet, or None."""
    import torch

    return None if torch.cuda.is_available() else "this torch has no CUDA, or it does not match the driver"


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 on the GPU without TF32 and with deterministic convolutions; restores torch's settings."""
    import torch

    before = torch.get_float32_matmul_precision()
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
