"""TorchScript export of one graph to one file, by tracing.

The module is not frozen. Freezing merges batch norms into convolutions and turns parameters into constants, so the
weights in the file could no longer be compared with the model's. Control flow that depends on values or sizes is an
error, because a trace would record one branch only.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.jit import _recursive as recursive
from torch.jit import _state as torch_state
from torch.jit._trace import TracerWarning  # the public name is not exported for type checkers

from tmi.runtime.bundle.manifest import GraphSpec
from tmi.toolkit.compute.silence import quiet

DEBUG_SUFFIX = ".debug_pkl"
"""End of the names of records with call stacks."""
VERSION_RECORDS = (".data/version", "version")
"""Names of the record with the version of the operators; which one is written depends on the operators."""
WRITER_RECORDS = frozenset({*VERSION_RECORDS, "byteorder", ".data/serialization_id"})
"""Records that PyTorch's writer adds itself."""


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
    with warnings.catch_warnings(record=True) as caught, torch.no_grad(), _own_type_names(), _default_convolutions():
        warnings.filterwarnings("always", category=TracerWarning)
        # TorchScript is deprecated in favour of torch.export; the constraints pin a torch that still writes it.
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.trace.*", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.save.*", category=DeprecationWarning)
        # The tracer reads every attribute of every module, including the deprecated ones of transformers.
        warnings.filterwarnings("ignore", message=r"`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        with quiet([], loggers=["transformers.modeling_utils"], level=logging.ERROR):
            traced = torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            saved = Path(folder) / path.name  # the name of the archive inside is that of the file
            torch.jit.save(traced, str(saved))
            _copy_without_debug_records(saved, path)
    for warning in caught:
        if issubclass(warning.category, TracerWarning):
            raise RuntimeError(f"the trace of {spec.name} does not reproduce the model: {warning.message}")
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@contextmanager
def _default_convolutions() -> Iterator[None]:
    """Trace convolutions with torch's default settings, and without TF32.

    The tracer stores the settings in every convolution: a GPU would follow the permission of TF32, and a training in
    the same process, which asks for deterministic algorithms, would change the file.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=False):
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


@contextmanager
def _own_type_names() -> Iterator[None]:
    """Number the types of the traces in the block from 0, as in a process that has traced nothing before."""
    before = torch_state._python_cu, recursive.concrete_type_store
    torch_state._python_cu = torch._C.CompilationUnit()
    recursive.concrete_type_store = recursive.ConcreteTypeStore()
    try:
        yield
    finally:
        torch_state._python_cu, recursive.concrete_type_store = before


def _copy_without_debug_records(source: Path, target: Path) -> None:
    """Copy an archive without the call stacks of its operators.

    They hold the paths and line numbers of the program that called the export: the same run would give other bytes, and
    the file would name folders of the machine. TorchScript needs them for error messages only.
    """
    reader = torch._C.PyTorchFileReader(str(source))
    writer = torch._C.PyTorchFileWriter(str(target))
    names = reader.get_all_records()
    # Operators of a newer version must not be read as those of an older one.
    writer.set_min_version(int(reader.get_record(next(name for name in VERSION_RECORDS if name in names))))
    for name in names:
        if not name.endswith(DEBUG_SUFFIX) and name not in WRITER_RECORDS:
            record = reader.get_record(name)
            writer.write_record(name, record, len(record))
    writer.write_end_of_file()
