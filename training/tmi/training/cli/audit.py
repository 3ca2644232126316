"""Command `tmi audit`: check a finished run for data leakage."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tmi.toolkit.cases.case import MaskLabel, is_cohort, open_cohort, parse_mask_label
from tmi.toolkit.cli.console import echo, echo_json
from tmi.toolkit.cli.inputs import require_paths, require_used_key
from tmi.toolkit.cli.progress import show_progress
from tmi.toolkit.config.project import load_project
from tmi.toolkit.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from tmi.toolkit.run_folder import FoldSplit, RunFolder
    from tmi.training.data.dataset import CohortArrays
    from tmi.training.leakage_audit.run_checks import AuditResult
    from tmi.training.pretrained.initial_weights import InitialWeights


def audit(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    cohort: Annotated[
        Path | None,
        typer.Argument(help="Cohort of the run; default: ./cohort or tmi.toml's, if it is that cohort."),
    ] = None,
    mask_label: Annotated[
        list[str] | None,
        typer.Option("--mask-label", metavar="N[,N]", help="Label of the liver in the masks; several are joined."),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="Bundle of the run: check the calibration cases of its INT8 graphs.", show_default=False),
    ] = None,
    key: Annotated[
        list[Path] | None,
        typer.Option(
            help="Public key (PEM) that must have signed --bundle; several: one of them.",
            envvar="TMI_KEY",
            show_default=False,
        ),
    ] = None,
    no_model: Annotated[bool, typer.Option("--no-model", help="Do not run the saved models.")] = False,
    replay: Annotated[
        bool, typer.Option("--replay", help="Train each fold again and compare the weights bit for bit.")
    ] = False,
    fold: Annotated[
        list[int] | None, typer.Option("--fold", help="Fold of --replay; repeatable. Default: all.")
    ] = None,
    ct_weights: Annotated[
        Path | None, typer.Option("--ct-weights", help="The run's --ct-weights; only for --replay.")
    ] = None,
    text_weights: Annotated[
        Path | None, typer.Option("--text-weights", help="The run's --text-weights; only for --replay.")
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Prepare every case again and cache nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Search a run for leaks of held-out cases into its metrics.

    Splits, scalers, vocabularies, the selected epoch, temperature and threshold, predictions and duplicate images are
    recomputed. Exit code 6 means leakage, also if the protocol declares it (`released`); exit code 0 means that these
    checks found none, and the output lists what they cannot see.

    Examples:

        tmi audit runs/first
        tmi audit runs/first cohort/ --json
        tmi audit runs/first cohort/ --no-model
        tmi audit runs/first cohort/ --replay --fold 0
    """
    from dataclasses import asdict

    from tmi.toolkit.run_folder import RunFolder
    from tmi.training.leakage_audit.run_checks import audit_folder, limits
    from tmi.training.leakage_audit.trust_checks import check_conformal

    require_paths(("run", run), ("cohort", cohort), ("--ct-weights", ct_weights), ("--text-weights", text_weights))
    require_paths(("--bundle", bundle))
    if bundle is None:
        require_used_key(context, "no bundle is given", fix="omit it, or give the signed bundle with --bundle")
    if not replay and (fold or ct_weights or text_weights):
        raise UsageError("--fold, --ct-weights and --text-weights belong to --replay", fix="add --replay")
    folder = RunFolder.open(run)
    options = _ReplayOptions(folds=tuple(fold or ()), ct=ct_weights, text=text_weights) if replay else None
    results = [
        *audit_folder(folder),
        *(result for split in folder.folds for result in check_conformal(folder, split)),
        *_audit_bundle(folder, bundle, key),
        *_audit_with_cohort(
            folder,
            cohort,
            parse_mask_label(mask_label),
            run_models=not no_model,
            cached=not no_cache,
            replay=options,
        ),
    ]
    leaks = [r for r in results if r.status == "leak"]
    declared = [r for r in results if r.status == "declared"]
    verdict = "leak" if leaks else "optimistic" if declared else "clean"
    if as_json:
        answers = [asdict(r) for r in results]
        document = {
            "run": run.name,
            "verdict": verdict,
            "answers": answers,
            "cannot_see": list(limits(folder, results)),
        }
        echo_json(json.dumps(document, indent=2))
    else:
        _print_results(results, verdict, limits(folder, results))
    if verdict != "clean":
        raise typer.Exit(int(ExitCode.DAMAGED))


@dataclass(frozen=True, kw_only=True)
class _ReplayOptions:
    """Options of `--replay`."""

    folds: tuple[int, ...]
    ct: Path | None
    text: Path | None


def _audit_bundle(run: RunFolder, bundle: Path | None, key: list[Path] | None) -> list[AuditResult]:
    from tmi.runtime.bundle.signing import open_trusted_bundle
    from tmi.training.leakage_audit.calibration_checks import audit_calibration

    return [] if bundle is None else [audit_calibration(run, open_trusted_bundle(bundle, key).manifest)]


def _audit_with_cohort(
    run: RunFolder,
    given: Path | None,
    mask_label: MaskLabel | None,
    *,
    run_models: bool,
    cached: bool,
    replay: _ReplayOptions | None,
) -> list[AuditResult]:
    """Run the checks that need the cohort.

    If no cohort is given and the project has none or a different one, the checks are `not checked`.
    """
    from tmi.toolkit.preprocessing.cache import PreparedCache
    from tmi.training.data.dataset import prepare_cohort
    from tmi.training.leakage_audit.cohort_checks import audit_cohort, not_checked, require_same_cohort, scratch_store

    folder = given or load_project().path("cohort")
    if given is None and replay is not None and not is_cohort(folder):
        raise UsageError("--replay needs the cohort of the run", fix="tmi audit RUN COHORT --replay")
    if given is None and not is_cohort(folder):
        return not_checked("no cohort given: tmi audit RUN COHORT")
    data = open_cohort(folder, mask_label=mask_label)
    try:
        require_same_cohort(run, data)
    except UsageError as error:
        if given is not None or replay is not None:
            raise
        return not_checked(f"{error.what}; give its own: tmi audit RUN COHORT")
    splits: tuple[FoldSplit, ...] = ()
    initial: InitialWeights | None = None
    if replay is not None:
        from tmi.training.leakage_audit.replay import replay_weights, select_folds

        splits = select_folds(run, list(replay.folds))
        initial = replay_weights(run, ct=replay.ct, text=replay.text)
    with tempfile.TemporaryDirectory(prefix="tmi-audit-") as scratch:
        cache = PreparedCache() if cached else None
        with show_progress() as progress:
            task = progress.add("preparing cases", len(data.cases), unit="cases")
            arrays = prepare_cohort(
                data,
                run.config,
                run.schema,
                store=scratch_store(Path(scratch)),
                cache=cache,
                progress=lambda case: task.advance(),
            )
            progress.step("checking the run against its cohort")
            results = audit_cohort(run, arrays, run_models=run_models)
        if splits:
            results += _replay_folds(run, arrays, splits, initial, Path(scratch) / "replay")
        return results


def _replay_folds(
    run: RunFolder,
    arrays: CohortArrays,
    splits: tuple[FoldSplit, ...],
    initial: InitialWeights | None,
    scratch: Path,
) -> list[AuditResult]:
    """Train the named folds again, with the progress of their epochs on standard error."""
    from tmi.training.cli.progress import ProgressCallbacks
    from tmi.training.leakage_audit.replay import replay_fold

    with show_progress(transient=False) as progress:
        callbacks = ProgressCallbacks(progress, folds=run.config.train.folds)
        callbacks.on_training_start(len(splits))
        return [
            replay_fold(
                run,
                split,
                arrays,
                initial=initial,
                scratch=scratch,
                epoch_callback=callbacks.on_fold_start(split, run.config.train.epochs),
            )
            for split in splits
        ]


def _print_results(results: list[AuditResult], verdict: str, cannot_see: tuple[str, ...]) -> None:
    for result in results:
        fold = "" if result.fold is None else f" fold {result.fold}"
        echo(f"{result.status:<11} {result.check}{fold}: {result.detail}")
    counts = {s: sum(r.status == s for r in results) for s in ("holds", "leak", "declared", "warning", "not checked")}
    totals = ", ".join(f"{n} {status}" for status, n in counts.items() if n)
    echo("these checks cannot see:")
    for limit in cannot_see:
        echo(f"  - {limit}")
    conclusions = {
        "clean": "no leak found by these checks",
        "optimistic": "the metrics are optimistic by the run's own protocol",
        "leak": "leakage found: the metrics cannot be trusted",
    }
    echo(f"{conclusions[verdict]} ({totals})")
