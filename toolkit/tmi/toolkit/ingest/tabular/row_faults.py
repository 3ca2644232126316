"""Reasons why a row of a table is not imported, collected so that one message names all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Fault:
    """One reason why a row cannot be imported."""

    code: str
    """Code of the reason."""
    why: str
    """Reason, without a value of the table."""


class RowRejectedError(Exception):
    """The row cannot be imported.

    Args:
        code: code of the reason; of the first, if there are several.
        why: reason, without a value of the table.
        case_id: case id of the row, if known.
        faults: every reason; None: the one given by code and why.
    """

    def __init__(
        self, code: str, why: str, *, case_id: str | None = None, faults: tuple[Fault, ...] | None = None
    ) -> None:
        super().__init__(why)
        self.code = code
        self.why = why
        self.case_id = case_id
        self.faults = faults or (Fault(code, why),)


class RowExcludedError(RowRejectedError):
    """The row is valid, but the mapping gives it no label.

    Args:
        why: reason.
        stated: whether the mapping states that such rows are excluded.
    """

    def __init__(self, why: str, *, stated: bool) -> None:
        super().__init__("no-label", why)
        self.stated = stated


def rejected(faults: Sequence[Fault], *, case_id: str | None) -> RowRejectedError:
    """Return the error of a row with one or several faults."""
    why = "; ".join(fault.why for fault in faults)
    return RowRejectedError(faults[0].code, why, case_id=case_id, faults=tuple(faults))


def attempt(faults: list[Fault], read: Callable[[], T]) -> T | None:
    """Return what `read` returns, or None and add its faults; a missing label is no fault."""
    try:
        return read()
    except RowExcludedError:
        raise
    except RowRejectedError as error:
        faults += error.faults
        return None
