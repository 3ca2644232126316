"""Typed errors and the documented exit codes of the command line.

Each error states the problem, the case or file it concerns, and the fix. Library code raises these errors; only the
command line prints them and exits. Messages contain no patient data except the case id. `TmiError.issues` converts an
error to `Issue`, the record of documents, pages and journals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import IntEnum
from typing import Any, ClassVar, Self

from tmi.toolkit.issues.issue import Issue, shortened


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
        code: row of `tmi.toolkit.issues.CODES`; None: the code of the class.
        case_id: the affected case, if any.
    """

    exit_code: ExitCode = ExitCode.UNEXPECTED
    class_code: ClassVar[str] = "unexpected"
    """Code of an error that is given none."""

    def __init__(self, what: str, *, fix: str, code: str | None = None, case_id: str | None = None) -> None:
        self.what = shortened(what)
        super().__init__(self.what)
        self.fix = shortened(fix)
        self.code = code or self.class_code
        self.case_id = case_id

    @property
    def issues(self) -> tuple[Issue, ...]:
        """Every problem that the error reports, of severity `error`."""
        return (Issue(code=self.code, severity="error", message=self.what, fix=self.fix, case_id=self.case_id),)

    def __str__(self) -> str:
        return f"case {self.case_id}: {self.what}" if self.case_id else self.what

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the full state; the default implementation drops keyword-only arguments."""
        return _from_state, (type(self), self.__dict__)

    def for_case(self, case_id: str) -> Self:
        """Set the case id and return this error."""
        self.case_id = case_id
        return self


def _from_state(kind: type[TmiError], state: dict[str, Any]) -> TmiError:
    error = kind.__new__(kind, state["what"])
    error.__dict__.update(state)
    return error


class UsageError(TmiError):
    """A command, option, setting or path is invalid (exit code 2)."""

    exit_code = ExitCode.USAGE
    class_code = "usage"


class InputRejectedError(TmiError):
    """A case or cohort is rejected (exit code 3).

    Args:
        what: as in `TmiError`.
        fix: as in `TmiError`.
        code: code of the check that failed, for example `mask-grid`.
        case_id: as in `TmiError`.
        issues: every problem, if there are several and `what` summarises them; the first has the code and the fix.
    """

    exit_code = ExitCode.REJECTED

    def __init__(
        self, what: str, *, fix: str, code: str, case_id: str | None = None, issues: Sequence[Issue] = ()
    ) -> None:
        super().__init__(what, fix=fix, code=code, case_id=case_id)
        self._issues = tuple(issues)

    @classmethod
    def of(cls, issues: Sequence[Issue], *, what: str | None = None) -> Self:
        """Return the error of a case's issues, of which the first names the case.

        Args:
            issues: at least one.
            what: summary; None: the message of the first.
        """
        first = issues[0]
        return cls(what or first.message, fix=first.fix, code=first.code, case_id=first.case_id, issues=issues)

    @property
    def issues(self) -> tuple[Issue, ...]:
        """Every problem that the error reports, of severity `error` and of the case of this error."""
        return tuple(replace(issue, severity="error", case_id=self.case_id) for issue in self._issues) or super().issues


class UnavailableError(TmiError):
    """An engine, an optional dependency or the hardware is not available (exit code 5)."""

    exit_code = ExitCode.UNAVAILABLE
    class_code = "unavailable"


class DamagedError(TmiError):
    """A bundle or run is damaged, modified or not trusted (exit code 6)."""

    exit_code = ExitCode.DAMAGED
    class_code = "damaged"
