"""Reasons why a row of a table is not imported, collected so that one message names all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TypeVar

from tmi.toolkit.cases.case import CLINICAL_FILE
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.issues.issue import Issue

T = TypeVar("T")
FIXES: Mapping[str, str] = MappingProxyType(
    {
        "row": "correct the cell in the table",
        "id": "give each row an id that is a plain name, as text",
        "case-twice": "give each row its own case id",
        "number": "write a number, or name the text in the mapping (values, missing, decimal)",
        "date": "write the date in the mapping's format, or correct the format there",
        "no-label": "none needed if the row is left out on purpose; else name the text in the mapping or fill the cell",
        "ct-missing": "correct the path in the table",
        "mask-missing": "correct the path in the table",
        "radiomics-missing": "correct the path in the table",
        "case-unreadable": "give the user read permission for the folder and its files, and check the disk",
    }
)
"""Code of a row's fault -> its fix."""
CLINICAL_FIXES: Mapping[str, str] = MappingProxyType(
    {
        "clinical-type": "correct the cell, or name its text in the mapping (values)",
        "clinical-unit-suspect": "state the unit of the column in the mapping, or correct the cell",
    }
)
"""Code of a fault of a record whose fix differs in a table: the units and texts of a column are in the mapping."""


def fault(code: str, why: str) -> Issue:
    """Return a reason why a row is not imported; `why` contains no value of the table."""
    return Issue.of(code, why, FIXES[code])


def clinical_fault(error: InputRejectedError) -> Issue:
    """Return the reason for a value that the reader of clinical records rejects, in the words of a table."""
    hint = (
        " (if its column mixes two units, give the bound between them in the mapping: other_units)"
        if error.code == "clinical-unit-suspect"
        else ""
    )
    if error.code == "clinical-type":
        hint = f" ({error.fix.removeprefix('write ')}; name other texts in the mapping: values)"
    message = error.what.removeprefix(f"{CLINICAL_FILE}: ") + hint
    return Issue.of(error.code, message, CLINICAL_FIXES.get(error.code, error.fix))


class RowRejectedError(InputRejectedError):
    """The row cannot be imported.

    Args:
        code: code of the reason; of the first, if there are several.
        why: reason, without a value of the table.
        case_id: case id of the row, if known.
        issues: every reason; none: the one given by code and why.
    """

    def __init__(self, code: str, why: str, *, case_id: str | None = None, issues: Sequence[Issue] = ()) -> None:
        fix = issues[0].fix if issues else FIXES[code]
        super().__init__(why, fix=fix, code=code, case_id=case_id, issues=issues)


class RowExcludedError(RowRejectedError):
    """The row is valid, but the mapping gives it no label.

    Args:
        why: reason.
        stated: whether the mapping states that such rows are excluded.
    """

    def __init__(self, why: str, *, stated: bool) -> None:
        super().__init__("no-label", why)
        self.stated = stated

    @property
    def issues(self) -> tuple[Issue, ...]:
        """The one reason: a note if the mapping states it, else a warning."""
        return tuple(replace(issue, severity="note" if self.stated else "warning") for issue in super().issues)


def rejected(faults: Sequence[Issue], *, case_id: str | None) -> RowRejectedError:
    """Return the error of a row with one or several faults."""
    why = "; ".join(fault.message for fault in faults)
    return RowRejectedError(faults[0].code, why, case_id=case_id, issues=faults)


def attempt(faults: list[Issue], read: Callable[[], T]) -> T | None:
    """Return what `read` returns, or None and add its faults; a missing label is no fault."""
    try:
        return read()
    except RowExcludedError:
        raise
    except RowRejectedError as error:
        faults += error.issues
        return None
