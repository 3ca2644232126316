"""Which device to train on; never another one than was asked for."""

from __future__ import annotations

from typing import Literal

from tmi.toolkit.errors import UnavailableError, UsageError


def resolve_accelerator(requested: str) -> Literal["cpu", "gpu"]:
    """`cpu` or `gpu` from what the user asked for; `auto` takes a GPU where there is one.

    Raises:
        UsageError: no such choice.
        UnavailableError: a GPU is asked for and none can be used.
    """
    import torch

    if requested not in ("auto", "cpu", "gpu"):
        raise UsageError(f"unknown accelerator {requested!r}", fix="choose cpu, gpu or auto")
    there = torch.cuda.is_available()
    if requested == "gpu" and not there:
        raise UnavailableError("no GPU that torch can use", fix="install the CUDA build of torch, or --accelerator cpu")
    return "gpu" if there and requested != "cpu" else "cpu"
