"""One graph as one TorchScript file, by tracing.

Not frozen: freezing merges batch norms into convolutions and turns parameters into constants, and then no one could
tell whether the weights in the file are the model's. A branch on values or sizes that the trace would bake in is an
error.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning  # the public name is not exported for type checkers

from tmi.runtime.bundle.manifest import GraphSpec
from tmi.toolkit.compute.quiet import quiet


def write_torchscript(module: nn.Module, spec: GraphSpec, example: tuple[Tensor, ...], path: Path) -> None:
    """Trace on the example inputs and save.

    Args:
        module: in evaluation mode.
        spec: gives the name; the tensors keep their order, TorchScript has no names for them.
        example: small inputs of the graph, at least two cases.
        path: file to write.

    Raises:
        RuntimeError: the module decides by a value or a size, which a trace cannot follow.
    """
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.filterwarnings("always", category=TracerWarning)
        # TorchScript is deprecated in favour of torch.export; the constraints pin a torch that still writes it.
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.trace.*", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.save.*", category=DeprecationWarning)
        # The tracer touches every attribute of every module, the deprecated ones of transformers included.
        warnings.filterwarnings("ignore", message=r"`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        with quiet([], loggers=["transformers.modeling_utils"], level=logging.ERROR):
            traced = torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, str(path))
    for warning in caught:
        if issubclass(warning.category, TracerWarning):
            raise RuntimeError(f"the trace of {spec.name} does not follow the model: {warning.message}")
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
