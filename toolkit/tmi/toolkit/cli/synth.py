"""Command `tmi synth`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tmi.toolkit.cli.console import echo
from tmi.toolkit.cli.inputs import limit_to_cores, require_folder_name
from tmi.toolkit.cli.progress import show_progress


def synth(
    out: Annotated[Path, typer.Argument(help="Folder of the new cohort.", show_default=False)],
    cases: Annotated[int, typer.Option(help="Number of cases.", min=2, max=9999)] = 24,
    seed: Annotated[int, typer.Option(help="Seed; the same seed and number of cases give the same files.", min=0)] = 0,
    jobs: Annotated[int | None, typer.Option(help="Processes. Default: all cores.", min=1, show_default=False)] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing synthetic cohort.")] = False,
) -> None:
    """Write a synthetic cohort: abdominal phantoms, clinical records, radiomics, and the ground truth.

    The cohort is meant for tests and demonstrations. Metrics obtained on it do not apply to patients. Its `truth.json`
    lists the highest AUC that CT, radiomics and clinical record allow, alone and in combination.

    Examples:

        tmi synth ./cohort
        tmi synth ./cohort --cases 24 --seed 1 --force
    """
    require_folder_name(out, kind="cohort")
    jobs = limit_to_cores(jobs, option="--jobs")

    from tmi.toolkit.storage.atomic_files import read_json
    from tmi.toolkit.synthetic.cohort import SYNTHETIC_NOTICE, TRUTH_FILE, make_cohort
    from tmi.toolkit.synthetic.generative_model import modality_subsets

    with show_progress() as progress:
        task = progress.add("synthetic cases", cases, unit="cases")
        cohort = make_cohort(
            out,
            cases=cases,
            seed=seed,
            jobs=jobs,
            force=force,
            progress=task.update,
        )
    truth = read_json(out / TRUTH_FILE, kind="cohort")
    patients = len({c.patient_id for c in cohort.cases})
    bad = sum(c.label == 1 for c in cohort.cases)
    echo(f"synthetic cohort {out}: {cases} cases of {patients} patients, {bad} bad, {cases - bad} good")
    echo(f"best AUC that a method can reach ({out / TRUTH_FILE}):")
    for name in modality_subsets():
        echo(f"  {name.replace('+', ' + '):26} {truth['best_auc'][name]:.3f}")
    echo(SYNTHETIC_NOTICE)
