"""The result of a parity check, as a bundle's manifest records it, and the error that a failed one raises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tmi.toolkit.errors import ExitCode, TmiError


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """Outcome of one parity gate on one artefact."""

    gate: str
    """Name of the gate."""
    artefact: str
    """Artefact kind it ran on."""
    graph: str
    """Graph name, or `pipeline` for all graphs together."""
    passed: bool
    """Whether it held."""
    measured: float | None
    """The figure, where the gate has one."""
    bound: float | None
    """What the figure must not exceed."""
    detail: str
    """One sentence."""
    engine: str | None = None
    """Engine that ran the artefact; None where the file itself was audited."""
    multiple: float | None = None
    """`measured` as a multiple of eager float32's own error against float64, where the gate has that."""


class ParityError(TmiError):
    """An exported graph differs from the model that was validated (exit code 4).

    Args:
        what: as in `TmiError`.
        fix: as in `TmiError`.
        records: the result of every check that ran, those that passed included.
    """

    exit_code = ExitCode.PARITY

    def __init__(self, what: str, *, fix: str, records: Sequence[CheckResult] = ()) -> None:
        super().__init__(what, fix=fix)
        self.records = tuple(records)


EXPORT_FIX = (
    "do not use this model exported with these versions; see docs/parity.md for what the gate means, and compare the "
    "installed versions with constraints.txt"
)


def require_passed(
    records: Sequence[CheckResult], *, consequence: str = "no bundle was written", fix: str = EXPORT_FIX
) -> None:
    """Raise unless every check passed.

    Args:
        records: results of all checks that ran.
        consequence: what became of the bundle, for the error's text.
        fix: as in `TmiError`.

    Raises:
        ParityError: at least one failed; with every record.
    """
    failed = [r for r in records if not r.passed]
    if failed:
        first = failed[0]
        raise ParityError(
            f"{len(failed)} of {len(records)} parity gates failed, first {first.gate} of {first.graph} "
            f"({first.engine or first.artefact}): {first.detail}; {consequence}",
            fix=fix,
            records=records,
        )
