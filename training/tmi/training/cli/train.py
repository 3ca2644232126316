"""Command `tmi train`: train one model for each fold of a cohort."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tmi.toolkit.cases.case import open_cohort, parse_mask_label
from tmi.toolkit.cli.completion import completes
from tmi.toolkit.cli.console import echo, make_console
from tmi.toolkit.cli.inputs import require_folder_name, require_paths
from tmi.toolkit.cli.interrupts import interruptible
from tmi.toolkit.cli.listing import Column, Listing, print_listing
from tmi.toolkit.cli.progress import show_progress
from tmi.toolkit.config.project import Project, load_project, new_run_folder
from tmi.toolkit.config.recipes import DEFAULT_RECIPE
from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import ExitCode, UnavailableError, UsageError
from tmi.toolkit.models.registry import configured_model
from tmi.toolkit.run_folder import RUN_FILE, RunFolder, is_unstarted
from tmi.toolkit.storage.atomic_files import require_absent
from tmi.toolkit.storage.outputs import output_lock, require_place
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
from tmi.training.loop.hardware import HardwareConfig, require_hardware_options, resolve_accelerator

if TYPE_CHECKING:
    from tmi.training.loop.cross_validation import RunResult
    from tmi.training.loop.run_spec import RunSpec


def train(
    cohort: CohortFolder = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder; default: `./runs/<date>-<name>`.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run; default: the preset.")] = None,
    preset: Preset = None,
    recipe: Recipe = DEFAULT_RECIPE,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Model, see docs/systems.md; default: tmi-clnet.",
            autocompletion=completes(of="tmi.toolkit.model_registry:model_names"),
        ),
    ] = None,
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
    nodes: Annotated[int, typer.Option("--nodes", help="Machines, each started with its NODE_RANK.")] = 1,
    parallel_folds: ParallelFolds = 1,
    track: Annotated[
        list[str] | None,
        typer.Option(
            "--track",
            help="tensorboard or mlflow, in addition to history.csv; repeatable.",
            autocompletion=completes(of="tmi.training.loop.hardware:TRACKER_MODULES"),
        ),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print the memory that a step needs; train nothing.")] = False,
    no_cache: NoCache = False,
    no_memory_check: NoMemoryCheck = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing run.")] = False,
) -> None:
    """Train one model for each fold of a cohort: stratified folds grouped by patient, nothing fitted on held-out cases.

    After Ctrl-C, --resume continues the run to the same result.

    Examples:

        tmi train
        tmi train cohort/ --out runs/first --preset tiny --folds 2
        tmi train cohort/ --out runs/first --preset tiny --folds 2 --resume
        tmi train cohort/ --out runs/strong --preset tiny --recipe strong
        tmi train cohort/ --ct-weights r3d50_K_200ep.pth --text-weights biobert-v1.1/ --freeze text
        tmi train --preset paper --precision bf16-mixed --plan
    """
    project = load_project()
    folder = cohort or project.path("cohort")
    preset_name = preset or project.preset
    config = configure(preset_name, folds, epochs, settings or [], model=model, freeze=freeze, precision=precision,
                       recipe=recipe)  # fmt: skip
    require_hardware_options(accelerator, devices, nodes=nodes, parallel_folds=parallel_folds, track=track or ())
    labels = parse_mask_label(mask_label)
    require_paths(("cohort", cohort), *weight_paths(ct_weights, text_weights, vocab, schema))
    if out is not None and not (plan or resume or nodes > 1):
        require_folder_name(out, kind="run")
        require_absent(out, force=force, kind="run")
    elif out is None and not (plan or resume):
        require_place(project.path("runs") / preset_name, kind="run")
    fields = cohort_schema(schema, project, folder)
    if not plan:
        if recipe != DEFAULT_RECIPE:
            open_cohort(folder, mask_label=labels)  # a wrong path is reported before minutes of teaching
        config, text_weights = with_taught_text(config, recipe, fields, text_weights, settings or [])
    untaught = untaught_line(config, text_weights)
    config, initialization = resolve_initialization(
        config, settings or [], ct=ct_weights, text=text_weights, vocab=vocab, schema=fields
    )
    memory = memory_mode(settings or [], unchecked=no_memory_check)
    if plan:
        _print_memory_estimate(config, devices, nodes, accelerator, parallel_folds, memory)
        return
    target = _run_folder(project, out, name or preset_name, resume=resume)
    for value, given, what in ((folder, cohort, "cohort"), (target, out, "run"), (preset_name, preset, "preset")):
        if given is None:
            echo(f"{what}: {value} (assumed)", err=True)
    data = open_cohort(folder, mask_label=labels)
    hardware = HardwareConfig(accelerator=resolve_accelerator(accelerator), devices=devices, nodes=nodes,
                      parallel_folds=parallel_folds, track=tuple(track or ()), memory=memory)  # fmt: skip
    hardware.check(config)
    from tmi.toolkit.preprocessing.cache import PreparedCache
    from tmi.training.loop.cross_validation import require_same_options
    from tmi.training.loop.memory_fit import fit_memory
    from tmi.training.loop.run_spec import RunSpec

    if not resume:  # before an existing run is removed; cross_validate compares again and reports
        fit_memory(config, hardware, cases=len(data.cases))
    tokenizer, vocabulary = read_given_vocabulary(vocab, initialization)
    spec = RunSpec(
        cohort=data,
        config=config,
        schema=fields,
        out=target,
        name=name,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        initial=None if initialization is None else initialization.weights,
        hardware=hardware,
        cache=None if no_cache else PreparedCache(),
    )
    # node 0 alone creates the run; the others write folds into it
    with nullcontext() if hardware.node_rank else output_lock(target, kind="run"):
        if resume and is_unstarted(target):
            echo(f"run {target} was not started; it starts now", err=True)
        elif resume:
            if RunFolder.open(target).finished:
                require_same_options(spec)
                echo(f"run {target} is already finished; next: tmi export {target}")
                return
        elif hardware.node_rank == 0:
            require_absent(target, force=force, kind="run")
            if target.exists():
                _remove_existing_run(target)
        print_initialization(initialization)
        if untaught is not None:
            echo(untaught, err=True)
        _run(spec, resume=resume)


def _print_memory_estimate(
    config: Config,
    devices: int,
    nodes: int,
    accelerator: str,
    parallel_folds: int,
    memory: Literal["fit", "as-set", "unchecked"],
) -> None:
    """Print the estimate for a GPU, or for a CPU if `accelerator` is `cpu`, and whether this machine has the memory."""
    if configured_model(config).trainer == "sklearn":
        echo(f"{config.system.name} has no network: it needs only the memory of its feature table")
        return
    from tmi.training.loop.memory_estimate import estimate_memory
    from tmi.training.loop.memory_fit import fit_memory

    echo(*estimate_memory(config, devices=devices * nodes, accelerator=accelerator).summary().splitlines())
    try:
        here = resolve_accelerator(accelerator)
    except UnavailableError:  # planned for another machine
        return
    hardware = HardwareConfig(accelerator=here, devices=devices, nodes=nodes, parallel_folds=parallel_folds,
                              memory=memory)  # fmt: skip
    try:
        fit = fit_memory(config, hardware)
    except UnavailableError as error:
        echo(f"on this machine ({here}): {error}", f"  fix: {error.fix}")
    else:
        if fit is not None:
            echo(f"on this machine ({here}): {fit.summary()}")


def _run_folder(project: Project, out: Path | None, name: str, *, resume: bool) -> Path:
    if out is not None:
        return out
    if not resume:
        return new_run_folder(project, name)
    runs = sorted(project.path("runs").glob("*/run.json"), key=lambda file: file.stat().st_mtime)
    if not runs:
        raise UsageError("no run to resume", fix="name the run with --out")
    return runs[-1].parent


def _remove_existing_run(target: Path) -> None:
    """Remove the run that --force replaces, even if it is damaged or of another version.

    Raises:
        UsageError: the folder is not a run.
    """
    if not is_unstarted(target) and not (target / RUN_FILE).is_file():
        raise UsageError(
            f"{target} exists and is not a run; --force replaces runs only", fix="name another folder with --out"
        )
    shutil.rmtree(target)


def _run(spec: RunSpec, *, resume: bool) -> None:
    from tmi.training.cli.progress import ProgressCallbacks
    from tmi.training.loop.cross_validation import cross_validate

    with (
        interruptible(f"continue with the same command and --out {spec.out} --resume"),
        show_progress(transient=False) as progress,
    ):
        callbacks = ProgressCallbacks(progress, folds=spec.config.train.folds)
        result = cross_validate(spec, callbacks, resume=resume)
    if spec.cache is not None:
        echo(spec.cache.summary(), err=True)
    if spec.hardware.node_rank > 0:
        return
    _print_result(result)
    if result.rejected:
        raise typer.Exit(int(ExitCode.REJECTED))


def _print_result(result: RunResult) -> None:
    from tmi.training.evaluation.metrics import METRICS
    from tmi.training.evaluation.summary import TITLES, format_metric

    dropped = {"precision": 1, "recall": 2, "f1": 3}
    columns = (
        Column("fold"),
        *(Column(title, right=True, drop=dropped.get(metric, 0)) for metric, title in TITLES.items()),
        Column("epoch", right=True, drop=4),
        Column("cases", right=True, drop=5),
    )
    rows = [
        (
            str(fold["fold"]),
            *(format_metric(fold["test"][m]) for m in METRICS),
            str(fold["picked_epoch"]),
            str(fold["cases"]["test"]),
        )
        for fold in result.summary["folds"]
    ]
    totals = [
        (title, *(format_metric(result.summary["over_folds"][m][key]) for m in METRICS), "", "")
        for title, key in (("mean", "mean"), ("SD", "std"))
    ]
    console = make_console()
    title = "Held-out cases, positive = bad prognosis"
    print_listing(console, Listing(columns=columns, rows=rows, totals=totals, title=title))
    for note in result.summary["notes"]:
        console.print(note, markup=False)
    if result.rejected:
        console.print(f"{len(result.rejected)} case(s) were left out; see above", markup=False)
    path = result.run.path
    echo(f"run      {path}", f"metrics  {path / 'summary.md'}", f"next     tmi export {path}")
