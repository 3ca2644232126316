"""`Issue`: a problem of an input, or a note about it, from the check that finds it to every document and page."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from tmi.toolkit.issues.codes import CODES, Severity

MAX_CHARACTERS = 2000
"""Largest length of a message and of a fix: they may quote a value of a file, which has any length."""


@dataclass(frozen=True, kw_only=True)
class Issue:
    """One problem of an input, or a note about it. It contains no patient data but the case id.

    Attributes:
        code: row of `CODES`; a retired code if it was read from a document of an earlier version.
        severity: `error`: the input must not be used as it is; `warning`: inspect it; `note`: how it was used.
        message: one sentence that states the problem.
        fix: one sentence that states how to fix it.
        case_id: the case, if it is one.
        count: number of features or clinical fields it concerns, if it concerns such.
        names: names of the first of those features.
    """

    code: str
    """Row of `CODES`; a retired code if it was read from a document of an earlier version."""
    severity: Severity
    """`error`: the input must not be used as it is; `warning`: inspect it; `note`: a fact about how it was used."""
    message: str
    """One sentence that states the problem."""
    fix: str
    """One sentence that states how to fix it."""
    case_id: str | None = None
    """The case, if it is one."""
    count: int | None = None
    """Number of features or clinical fields it concerns, if it concerns such."""
    names: tuple[str, ...] = ()
    """Names of the first of those features, in the order of the feature table."""

    @classmethod
    def of(
        cls,
        code: str,
        message: str,
        fix: str,
        *,
        case_id: str | None = None,
        count: int | None = None,
        names: tuple[str, ...] = (),
    ) -> Self:
        """Return an issue of the severity that the table of codes gives; an unknown code is a `KeyError`."""
        severity = CODES[code].severity
        return cls(code=code, severity=severity, message=message, fix=fix, case_id=case_id, count=count, names=names)

    def of_case(self, case_id: str) -> Self:
        """Return the same issue of a case."""
        return replace(self, case_id=case_id)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, the same in every document."""
        return {**vars(self), "names": list(self.names)}


def shortened(text: str) -> str:
    """Return a text of at most `MAX_CHARACTERS`."""
    return text if len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - 3]}..."
