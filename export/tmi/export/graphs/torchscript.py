"""TorchScript export of one graph to one file, by tracing.

The module is not frozen. Freezing merges batch norms into convolutions and turns parameters into constants, so the
weights in the file could no longer be compared with the model's. Control flow that depends on values or sizes is an
error, because a trace would record one branch only.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning  # the public name is not exported for type checkers

from tmi.runtime.bundle.manifest import GraphSpec
from tmi.toolkit.compute.silence import quiet


def write_torchscript(module: nn.Module, spec: GraphSpec, example: tuple[Tensor, ...], path: Path) -> None:
    """Trace a module on the example inputs and save the trace.

    Args:
        module: module in evaluation mode.
        spec: the graph. Its tensors keep their order; TorchScript does not store their names.
        example: small inputs of the graph, at least two cases.
        path: output file.

    Raises:
        RuntimeError: the module has control flow that depends on a value or a size.
    """
    with warnings.catch_warnings(record=True) as caught, torch.no_grad(), _without_tf32():
        warnings.filterwarnings("always", category=TracerWarning)
        # TorchScript is deprecated in favour of torch.export; the constraints pin a torch that still writes it.
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.trace.*", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.save.*", category=DeprecationWarning)
        # The tracer reads every attribute of every module, including the deprecated ones of transformers.
        warnings.filterwarnings("ignore", message=r"`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        with quiet([], loggers=["transformers.modeling_utils"], level=logging.ERROR):
            traced = torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, str(path))
    for warning in caught:
        if issubclass(warning.category, TracerWarning):
            raise RuntimeError(f"the trace of {spec.name} does not reproduce the model: {warning.message}")
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Trace without TF32: the tracer stores the permission in every convolution, and a GPU would follow it."""
    with torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled,
        benchmark=torch.backends.cudnn.benchmark,
        deterministic=torch.backends.cudnn.deterministic,
        allow_tf32=False,
    ):
        yield
