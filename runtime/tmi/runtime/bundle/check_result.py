"""Result of a parity check, as a bundle's manifest records it, and the error raised if a check fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tmi.toolkit.errors import ExitCode, TmiError


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """Result of one parity check on one artefact."""

    check: str
    """Name of the check."""
    artefact: str
    """Artefact kind that was checked."""
    graph: str
    """Graph name, or `pipeline` for all graphs together."""
    passed: bool
    """Whether the check passed."""
    measured: float | None
    """Measured value; None if the check has none."""
    bound: float | None
    """Largest allowed value of `measured`."""
    detail: str
    """Result in one sentence."""
    engine: str | None = None
    """Engine that ran the artefact; None if the file itself was audited."""
    multiple: float | None = None
    """`measured` as a multiple of eager float32's own error against float64; None if the check does not compute it."""


class ParityError(TmiError):
    """An exported graph differs from the validated model (exit code 4).

    Args:
        what: as in `TmiError`.
        fix: as in `TmiError`.
        records: results of all checks that ran, passed ones included.
    """

    exit_code = ExitCode.PARITY
    class_code = "parity"

    def __init__(self, what: str, *, fix: str, records: Sequence[CheckResult] = ()) -> None:
        super().__init__(what, fix=fix)
        self.records = tuple(records)


EXPORT_FIX = (
    "do not use this model exported with these versions; see docs/parity.md for what the check means, and compare "
    "the installed versions with constraints.txt"
)


def require_passed(
    records: Sequence[CheckResult], *, consequence: str = "no bundle was written", fix: str = EXPORT_FIX
) -> None:
    """Raise unless every check passed.

    Args:
        records: results of all checks that ran.
        consequence: what happened to the bundle, for the error message.
        fix: as in `TmiError`.

    Raises:
        ParityError: at least one check failed. The error holds all records.
    """
    failed = [r for r in records if not r.passed]
    if failed:
        first = failed[0]
        raise ParityError(
            f"{len(failed)} of {len(records)} parity checks failed, first {first.check} of {first.graph} "
            f"({first.engine or first.artefact}): {first.detail}; {consequence}",
            fix=fix,
            records=records,
        )
