"""Turn an exception of a library into the rejection of the case that it was computing.

Libraries raise whatever they like for input that they do not expect: PyWavelets a `ValueError`, ITK a `RuntimeError`, a
library in Rust a `PanicException`, which is not even an `Exception`. One such case must not end a cohort. The block
holds the call of the library and nothing else, so that an error of this package stays an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tmi.toolkit.errors import InputRejectedError, TmiError

PASSED_ON = (TmiError, KeyboardInterrupt, SystemExit, GeneratorExit)
"""Exceptions that are not a library's failure on its input."""


@contextmanager
def library_call(library: str, *, code: str, task: str, fix: str, case_id: str | None = None) -> Iterator[None]:
    """Reject the case if the call of a library in the block raises.

    Args:
        library: name of the library, for the message.
        code: code of the rejection.
        task: what the library was to do, as a verb: "extract the radiomics".
        fix: how to fix it.
        case_id: the case; None if a caller sets it.

    Raises:
        InputRejectedError: the block raised; names the library, the kind of the exception and the fix.
    """
    try:
        yield
    except PASSED_ON:
        raise
    except BaseException as error:  # a panic of a library in Rust is no `Exception`
        what = f"{library} failed to {task} ({type(error).__name__})"
        raise InputRejectedError(what, fix=fix, code=code, case_id=case_id) from error
