"""Running out of memory during an export is the machine's fault and not the model's: it gets an error of its own.

Every library has its own words for it, and the gates take an engine's exception for a refusal of the graph. Where the
kernel kills the process instead (exit code 137) nothing can be said; `docs/tensorrt.md` tells what an export needs.
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
"""What an exception's text holds where memory ran out, in lower case."""


@contextmanager
def out_of_memory_as_error(what: str, progress: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """Turn whatever a library raises where memory runs out into one error; everything else passes.

    Args:
        what: what was being done, for example `the export`.
        progress: told one line of what is being done.

    Yields:
        `progress`, listened to, so that the error can say where it was.

    Raises:
        UnavailableError: memory ran out.
    """
    at = ["starting"]

    def listening(line: str) -> None:
        at[0] = line
        progress(line)

    try:
        yield listening
    except ParityError as error:
        starved = [r for r in error.records if not r.passed and _mentions_memory(r.detail)]
        if not starved:
            raise
        raise _out_of_memory(what, f"judging {starved[0].artefact} on engine {starved[0].engine}") from error
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _mentions_memory(str(error)):
            raise
        raise _out_of_memory(what, at[0]) from error


def _mentions_memory(text: str) -> bool:
    return any(word in text.lower() for word in OUT_OF_MEMORY_PHRASES)


def _out_of_memory(what: str, where: str) -> UnavailableError:
    return UnavailableError(
        f"{what} ran out of memory while {where}; nothing was written",
        fix="close other programs, or use a machine with more memory: at 64 x 512 x 512 voxels an export needs about "
        "9 GiB (docs/tensorrt.md)",
    )
