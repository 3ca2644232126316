"""`tmi compare` with small networks: all rows of the paper's tables in one epoch and two folds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from factories.cases import write_cohort
from factories.tmi_command import CommandResult, tmi

SMALL = [
    "ct.shape_DHW=[8,16,16]",
    "clinical.vocab_size=200",
    "clinical.max_length=48",
    "network.ct_encoder.planes=[4,4,4,4]",
    "network.text_encoder.layers=1",
    "network.radiomics_encoder.hidden=8",
    "network.head.blocks=[1,1]",
    "system.resnet2d.planes=[4,4,4,4]",
    "system.radiomics_model.trees=5",
    "system.radiomics_model.inner_folds=2",
]


@dataclass(frozen=True)
class Comparison:
    """A finished comparison; read-only."""

    cohort: Path
    folder: Path
    outcome: CommandResult


def arguments(cohort: Path, out: Path, *more: str, epochs: int = 1, settings: tuple[str, ...] = ()) -> list[str]:
    """Arguments of the command."""
    assignments = [part for setting in (*SMALL, *settings) for part in ("--set", setting)]
    start = ["compare", str(cohort), "--out", str(out), "--preset", "tiny", "--folds", "2", "--epochs", str(epochs)]
    return [*start, "--accelerator", "cpu", *assignments, *more]


def compare(cohort: Path, out: Path, *more: str, settings: tuple[str, ...] = ()) -> CommandResult:
    """Run it in this process."""
    return tmi(*arguments(cohort, out, *more, settings=settings))


def compare_everything(folder: Path) -> Comparison:
    """Train all four tables on a new cohort."""
    cohort = write_cohort(folder / "cohort", cases=12, with_mask=False)
    outcome = compare(cohort, folder / "whole", "--table", "all")
    assert outcome.code == 0, outcome.err
    return Comparison(cohort=cohort, folder=folder / "whole", outcome=outcome)
