"""Conversion of out-of-memory exceptions during an export or a build into one error.

Each library raises its own exception, and the parity checks record an engine's exception as a failed check. Without the
conversion a machine with too little memory would look like a model that differs. A process that the kernel kills (exit
code 137) raises nothing; `tmi.export.bundle.memory_fit` compares the need with the machine before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tmi.runtime.bundle.check_result import ParityError
from tmi.toolkit.errors import UnavailableError

OUT_OF_MEMORY_PHRASES = (
    "allocate memory",  # torch, ONNX Runtime, the kernel
    "bad_alloc",
    "bad allocation",  # ONNX Runtime
    "out of memory",  # CUDA, OpenVINO
    "unable to allocate",  # numpy
)
"""Lower-case phrases that identify an out-of-memory exception."""


@contextmanager
def out_of_memory_as_error(what: str, progress: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """Raise one error for the out-of-memory exceptions of all libraries; other exceptions pass unchanged.

    Args:
        what: the operation, for example `the export`.
        progress: called with one line for each step.

    Yields:
        A wrapper of `progress` that records the current step for the error message.

    Raises:
        UnavailableError: memory ran out.
    """
    current_step = ["starting"]

    def record_step(line: str) -> None:
        current_step[0] = line
        progress(line)

    try:
        yield record_step
    except ParityError as error:
        # The parity checks catch an engine's exception and store its text in the record.
        out_of_memory = [r for r in error.records if not r.passed and _is_out_of_memory(r.detail)]
        if not out_of_memory:
            raise
        first = out_of_memory[0]
        raise _out_of_memory_error(what, f"validating {first.artefact} on engine {first.engine}") from error
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _is_out_of_memory(str(error)):
            raise
        raise _out_of_memory_error(what, current_step[0]) from error


def _is_out_of_memory(text: str) -> bool:
    return any(phrase in text.lower() for phrase in OUT_OF_MEMORY_PHRASES)


def _out_of_memory_error(what: str, step: str) -> UnavailableError:
    return UnavailableError(
        f"{what} ran out of memory while {step}; nothing was written",
        fix="close other programs, or use a machine with more memory: at 64 x 512 x 512 voxels an export needs about "
        "9 GiB (docs/tensorrt.md)",
    )
