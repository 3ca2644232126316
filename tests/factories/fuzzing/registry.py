"""Registry of the readers under fuzzing: the file that is damaged, its mutator, and the call that reads it.

A reader ends normally or with a `TmiError`; every other exception is a finding. A target imports its reader when it is
built, so that a worker without torch stays small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factories.cases import write_case
from factories.fuzzing.mutators import Mutator
from factories.paths import ROOT

Read = Callable[[], object]
Prepare = Callable[[Path], Read]
"""Prepare(folder) -> read: writes the valid files, and returns the call that reads them."""
PUBLISHED = ROOT / "tests" / "unit" / "runtime" / "bundle" / "data" / "tmi-bundle-2"


@dataclass(frozen=True)
class Target:
    """One reader of one file."""

    file: str
    """The file that is damaged, in the target's folder."""
    mutate: Mutator
    """Returns the damaged bytes."""
    prepare: Prepare
    """Writes the valid files."""
    torch: bool = False
    """Whether the reader imports torch."""


TARGETS: dict[str, Target] = {}


def target(name: str, file: str, mutate: Mutator, *, torch: bool = False) -> Callable[[Prepare], Prepare]:
    """Register a reader."""

    def register(prepare: Prepare) -> Prepare:
        TARGETS[name] = Target(file, mutate, prepare, torch)
        return prepare

    return register


def small_case(folder: Path) -> Any:
    from tmi.toolkit.cases.case import Case

    return Case(folder=write_case(folder / "C", seed=1, shape_xyz=(16, 14, 12)), case_id="C", mask_label=None)


def require_code(outcome: Any) -> None:
    """Raise if a command ended with an unexpected error."""
    if outcome.code not in (0, 2, 3, 5, 6):
        raise AssertionError(f"exit {outcome.code}: {outcome.err[-300:]}")
