"""Typed errors and the documented exit codes of the command line.

Every error that a user can meet says what is wrong, which case or file, and how to mend it. Only the command line
prints or exits; everything below it raises one of these. No text may carry patient data beyond the case id.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """What the `tmi` process answers to its shell."""

    DONE = 0
    UNEXPECTED = 1
    USAGE = 2
    REJECTED = 3
    PARITY = 4
    UNAVAILABLE = 5
    DAMAGED = 6


class TmiError(Exception):
    """What is wrong and how to mend it.

    Args:
        what: one sentence, naming the file or the setting, without patient data.
        fix: one sentence that tells the user what to do.
        case_id: the case it belongs to, where there is one.
    """

    exit_code: ExitCode = ExitCode.UNEXPECTED

    def __init__(self, what: str, *, fix: str, case_id: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix
        self.case_id = case_id

    def __str__(self) -> str:
        return f"case {self.case_id}: {self.what}" if self.case_id else self.what

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors cross process borders whole; by default the keyword arguments would be lost."""
        return _restored, (type(self), self.__dict__)

    def for_case(self, case_id: str) -> TmiError:
        """The same error, naming the case."""
        self.case_id = case_id
        return self


def _restored(kind: type[TmiError], state: dict[str, Any]) -> TmiError:
    error = kind.__new__(kind, state["what"])
    error.__dict__.update(state)
    return error


class UsageError(TmiError):
    """The command, an option, a setting or a path is wrong (exit code 2)."""

    exit_code = ExitCode.USAGE


class InputRejectedError(TmiError):
    """A case or cohort is refused (exit code 3).

    Args:
        what: as in `TmiError`.
        fix: as in `TmiError`.
        code: the short name of the check that refused it, for example `mask-grid`.
        case_id: as in `TmiError`.
    """

    exit_code = ExitCode.REJECTED

    def __init__(self, what: str, *, fix: str, code: str, case_id: str | None = None) -> None:
        super().__init__(what, fix=fix, case_id=case_id)
        self.code = code


class UnavailableError(TmiError):
    """An engine, an extra or the hardware is not there (exit code 5)."""

    exit_code = ExitCode.UNAVAILABLE


class DamagedError(TmiError):
    """A bundle or run is damaged, edited or not trusted (exit code 6)."""

    exit_code = ExitCode.DAMAGED
