"""Typed errors and the documented exit codes of the command line.

Each error states the problem, the case or file it concerns, and the fix. Library code raises these errors; only the
command line prints them and exits. Messages contain no patient data except the case id.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

MAX_CHARACTERS = 2000
"""Largest length of a message and of a fix."""


class ExitCode(IntEnum):
    """Exit status of the `tmi` process."""

    DONE = 0
    UNEXPECTED = 1
    USAGE = 2
    REJECTED = 3
    PARITY = 4
    UNAVAILABLE = 5
    DAMAGED = 6


class TmiError(Exception):
    """Base class of the errors that a user can fix.

    Args:
        what: one sentence that states the problem and names the file or setting, without patient data.
        fix: one sentence that states how to fix it.
        case_id: the affected case, if any.
    """

    exit_code: ExitCode = ExitCode.UNEXPECTED

    def __init__(self, what: str, *, fix: str, case_id: str | None = None) -> None:
        self.what = _shortened(what)
        super().__init__(self.what)
        self.fix = _shortened(fix)
        self.case_id = case_id

    def __str__(self) -> str:
        return f"case {self.case_id}: {self.what}" if self.case_id else self.what

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the full state; the default implementation drops keyword-only arguments."""
        return _from_state, (type(self), self.__dict__)

    def for_case(self, case_id: str) -> TmiError:
        """Set the case id and return this error."""
        self.case_id = case_id
        return self


def _shortened(text: str) -> str:
    """A text of at most `MAX_CHARACTERS`: it may quote a value of a file, which has any length."""
    return text if len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - 3]}..."


def _from_state(kind: type[TmiError], state: dict[str, Any]) -> TmiError:
    error = kind.__new__(kind, state["what"])
    error.__dict__.update(state)
    return error


class UsageError(TmiError):
    """A command, option, setting or path is invalid (exit code 2)."""

    exit_code = ExitCode.USAGE


class InputRejectedError(TmiError):
    """A case or cohort is rejected (exit code 3).

    Args:
        what: as in `TmiError`.
        fix: as in `TmiError`.
        code: code of the check that failed, for example `mask-grid`.
        case_id: as in `TmiError`.
    """

    exit_code = ExitCode.REJECTED

    def __init__(self, what: str, *, fix: str, code: str, case_id: str | None = None) -> None:
        super().__init__(what, fix=fix, case_id=case_id)
        self.code = code


class UnavailableError(TmiError):
    """An engine, an optional dependency or the hardware is not available (exit code 5)."""

    exit_code = ExitCode.UNAVAILABLE


class DamagedError(TmiError):
    """A bundle or run is damaged, modified or not trusted (exit code 6)."""

    exit_code = ExitCode.DAMAGED
