"""Command `tmi compare`: train the models of the paper's tables on one cohort and write a report."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tmi.toolkit.cases.case import open_cohort, parse_mask_label
from tmi.toolkit.cli.completion import completes
from tmi.toolkit.cli.console import echo
from tmi.toolkit.cli.inputs import require_folder_name, require_paths
from tmi.toolkit.cli.interrupts import interruptible
from tmi.toolkit.cli.progress import show_progress, show_steps
from tmi.toolkit.config.overrides import override
from tmi.toolkit.config.project import load_project
from tmi.toolkit.config.recipes import DEFAULT_RECIPE
from tmi.toolkit.errors import ExitCode, UsageError
from tmi.toolkit.storage.outputs import LOCK_FILE, output_lock, require_place
from tmi.training.cli.options import (
    Accelerator,
    CohortFolder,
    CtWeights,
    Devices,
    Epochs,
    Folds,
    Freeze,
    MaskLabel,
    NoCache,
    NoMemoryCheck,
    ParallelFolds,
    Precision,
    Preset,
    Recipe,
    SchemaFile,
    Settings,
    TextWeights,
    Vocab,
    cohort_schema,
    configure,
    memory_mode,
    print_initialization,
    read_given_vocabulary,
    resolve_initialization,
    weight_paths,
)
from tmi.training.cli.text_teaching import untaught_line, with_taught_text
from tmi.training.comparison.paper_tables import CLINICAL, CLINICAL_OVERRIDES, CLINICAL_RENDERINGS
from tmi.training.comparison.plan import RUNS
from tmi.training.loop.hardware import HardwareConfig, require_hardware_options, resolve_accelerator

if TYPE_CHECKING:
    from tmi.toolkit.cases.case import Cohort
    from tmi.training.comparison.external import ExternalEvaluation
    from tmi.training.comparison.plan import Plan, PlannedRun
    from tmi.training.comparison.runner import ComparisonRuns
    from tmi.training.loop.run_spec import RunSpec


def compare(
    cohort: CohortFolder = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the comparison; an existing one is continued.")] = Path(
        "comparison"
    ),
    table: Annotated[
        str,
        typer.Option(
            "--table",
            help="Table of the paper: 1, 2, 3, 4 or all; or clinical, or baselines.",
            autocompletion=completes("all", "clinical", "baselines", of="tmi.training.comparison.paper_tables:TABLES"),
        ),
    ] = "all",
    model: Annotated[
        list[str] | None, typer.Option("--model", help="Key of a row to train; repeatable. Default: all.")
    ] = None,
    external: Annotated[
        Path | None,
        typer.Option("--external", help="Cohort of other patients that every row's models predict after training."),
    ] = None,
    preset: Preset = None,
    recipe: Recipe = DEFAULT_RECIPE,
    folds: Folds = None,
    epochs: Epochs = None,
    settings: Settings = None,
    ct_weights: CtWeights = None,
    text_weights: TextWeights = None,
    vocab: Vocab = None,
    schema: SchemaFile = None,
    mask_label: MaskLabel = None,
    freeze: Freeze = None,
    precision: Precision = None,
    accelerator: Accelerator = "auto",
    devices: Devices = 1,
    parallel_folds: ParallelFolds = 1,
    no_cache: NoCache = False,
    no_memory_check: NoMemoryCheck = False,
) -> None:
    """Train the models of the paper's tables on the same folds and write the tables beside the paper's numbers.

    Finished runs in --out are reused and an interrupted run is continued: after Ctrl-C or a kill, repeat the command.
    TMI-CLNet is always trained; every other row is tested against it.

    Examples:

        tmi compare cohort/ --table 1 --preset tiny --folds 3 --out comparison
        tmi compare cohort/ --table 1 --model svm --model rf --preset tiny --folds 3
        tmi compare cohort/ --table all --preset tiny --folds 3 --epochs 20
        tmi compare cohort/ --table baselines --preset tiny --external other-hospital/
        tmi compare records/ --table clinical --preset tiny --folds 5
        tmi compare records/ --table clinical --preset tiny --folds 5 --text-weights reading/ --freeze text
    """
    project = load_project()
    folder = cohort or project.path("cohort")
    preset_name = preset or project.preset
    config = configure(preset_name, folds, epochs, settings or [], freeze=freeze, precision=precision, recipe=recipe)
    if table == CLINICAL.number:
        config = override(config, CLINICAL_OVERRIDES)
    require_hardware_options(accelerator, devices, parallel_folds=parallel_folds)
    require_paths(("cohort", cohort), ("--external", external), *weight_paths(ct_weights, text_weights, vocab, schema))
    _require_comparison(out)
    fields = cohort_schema(schema, project, folder)
    data = open_cohort(folder, mask_label=parse_mask_label(mask_label))
    config, text_folder = with_taught_text(
        config,
        recipe,
        fields,
        text_weights,
        settings or [],
        renderings=CLINICAL_RENDERINGS if table == CLINICAL.number else (),
    )
    config, initialization = resolve_initialization(
        config, settings or [], ct=ct_weights, text=text_folder, vocab=vocab, schema=fields
    )
    outside = None if external is None else open_cohort(external, mask_label=parse_mask_label(mask_label))
    from tmi.training.comparison.external_cohort import require_external
    from tmi.training.comparison.plan import make_plan, select_tables

    if outside is not None:
        require_external(data, outside)
    plan = make_plan(
        config,
        select_tables(table),
        only=model or (),
        weights=() if initialization is None else initialization.encoders,
    )
    if text_folder is not None:
        _require_matching_pretraining(plan, text_folder)
    hardware = HardwareConfig(
        accelerator=resolve_accelerator(accelerator),
        devices=devices,
        parallel_folds=parallel_folds,
        memory=memory_mode(settings or [], unchecked=no_memory_check),
    )
    hardware.check(config)
    echo(f"{len(plan.runs)} runs of {config.train.folds} folds in {out}", err=True)
    print_initialization(initialization)
    if (untaught := untaught_line(config, text_folder)) is not None:
        echo(untaught, err=True)
    for line in plan.not_applied:
        echo(line, err=True)
    options = {
        "external": external,
        "preset": preset_name,
        "recipe": None if recipe == DEFAULT_RECIPE else recipe,
        "folds": folds,
        "epochs": epochs,
        "ct-weights": ct_weights,
        "text-weights": text_weights,
        "vocab": vocab,
        "schema": schema,
        "mask-label": ",".join(mask_label) if mask_label else None,
        "freeze": freeze,
        "precision": precision,
        "devices": None if devices == 1 else devices,
        "parallel-folds": None if parallel_folds == 1 else parallel_folds,
    }
    command = _command_line(table, model or [], settings or [], options)
    from tmi.toolkit.preprocessing.cache import PreparedCache
    from tmi.training.loop.run_spec import RunSpec

    with output_lock(out, kind="comparison"):
        tokenizer, vocabulary = read_given_vocabulary(vocab, initialization)
        spec = RunSpec(
            cohort=data,
            config=plan.runs[0].config,
            schema=fields,
            out=out,
            tokenizer=tokenizer,
            vocabulary=vocabulary,
            initial=None if initialization is None else initialization.weights,
            hardware=hardware,
            cache=None if no_cache else PreparedCache(),
        )
        trained = _train(plan, spec)
        evaluation = None if outside is None else _evaluate(trained, outside, spec)
        _report(plan, trained, data, out, command, evaluation)
    failed = {**trained.failed, **({} if evaluation is None else evaluation.failed)}
    if failed or trained.rejected or (evaluation is not None and evaluation.rejected):
        raise typer.Exit(int(ExitCode.UNEXPECTED if failed else ExitCode.REJECTED))


def _require_comparison(out: Path) -> None:
    """Reject a folder that holds something else than a comparison: runs and a report would be mixed with it.

    Raises:
        UsageError: the folder is not empty and has no folder of runs.
    """
    require_folder_name(out, kind="comparison")
    require_place(out, kind="comparison")
    if out.is_dir() and not (out / RUNS).is_dir() and {p.name for p in out.iterdir()} - {LOCK_FILE}:
        raise UsageError(f"{out} exists and is not a comparison", fix="name another folder with --out")


def _require_matching_pretraining(plan: Plan, text_weights: Path) -> None:
    """Reject a row whose rendering the encoder was not pre-trained on, before anything is trained."""
    from tmi.training.pretrained.pretraining_record import require_matching_pretraining

    for planned in plan.runs:
        if "text" in planned.weights:
            require_matching_pretraining(text_weights, planned.config)


def _train(plan: Plan, spec: RunSpec) -> ComparisonRuns:
    from tmi.training.cli.progress import ProgressCallbacks
    from tmi.training.comparison.runner import train_all

    with (
        interruptible(f"continue with the same command and --out {spec.out}"),
        show_progress(transient=False) as progress,
    ):
        all_runs = progress.add("runs", len(plan.runs), unit="runs", announce=True)
        callbacks = ProgressCallbacks(progress, folds=plan.runs[0].config.train.folds)

        def on_run_status(planned: PlannedRun, status: str) -> None:
            progress.line(f"{planned.key}: {status}", event="run", run=planned.key, status=status)
            if status in ("reused", "done", "failed"):
                all_runs.advance()
                callbacks.clear()

        return train_all(plan, spec, callbacks, on_run_status=on_run_status)


def _command_line(
    table: str, rows: list[str], settings: list[str], options: Mapping[str, Path | str | int | None]
) -> str:
    """Command line that reproduces the report; files are given by name, without their folders."""
    from shlex import quote

    parts = ["tmi compare COHORT", f"--table {table}", *(f"--model {quote(r)}" for r in rows)]
    texts = {k: v.name if isinstance(v, Path) else str(v) for k, v in options.items() if v is not None}
    parts += [f"--{name} {quote(value)}" for name, value in texts.items()]
    return " ".join([*parts, *(f"--set {quote(s)}" for s in settings), "--out DIR"])


def _evaluate(trained: ComparisonRuns, external: Cohort, spec: RunSpec) -> ExternalEvaluation:
    """Predict the external cohort with every run; Ctrl-C ends the command, and the same command repeats this part."""
    from tempfile import TemporaryDirectory

    from tmi.training.comparison.external import evaluate_external

    with (
        interruptible(f"continue with the same command and --out {spec.out}"),
        show_progress(transient=False) as progress,
        TemporaryDirectory(dir=spec.out, prefix=".external-") as scratch,
    ):
        bar = progress.add("external cohort", len(trained.runs), unit="runs", announce=True)

        def on_run(key: str) -> None:
            progress.line(f"{key}: external cohort", event="external", run=key)
            bar.advance()

        return evaluate_external(trained.runs, external, scratch=Path(scratch), cache=spec.cache, on_run=on_run)


def _report(
    plan: Plan,
    trained: ComparisonRuns,
    data: Cohort,
    out: Path,
    command: str,
    external: ExternalEvaluation | None,
) -> None:
    from tmi.training.comparison.report import write_report

    with show_steps("writing the report"):
        written = write_report(plan, trained, data, out, command=command, external=external)
    for key, why in trained.failed.items():
        echo(f"failed   {key}: {why}", err=True, level=logging.ERROR)
    if trained.rejected:
        echo(f"{len(trained.rejected)} case(s) were left out; see above", err=True, level=logging.WARNING)
    for key, why in external.failed.items() if external is not None else ():
        echo(f"failed   {key} on the external cohort: {why}", err=True, level=logging.ERROR)
    for error in external.rejected if external is not None else ():
        echo(f"external case left out: {error}", err=True, level=logging.WARNING)
    for line in written.closing_lines:
        echo(line)
    echo(f"report   {written.html}", f"tables   {written.markdown}")
