"""`tmi train`."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tmi.toolkit.case import open_cohort
from tmi.toolkit.clinical_schema import Schema, load_schema
from tmi.toolkit.config import Config
from tmi.toolkit.config_io import override
from tmi.toolkit.errors import ExitCode, UsageError
from tmi.toolkit.files import require_absent
from tmi.toolkit.presets import preset as find_preset
from tmi.toolkit.project import Project, load_project, new_run_folder
from tmi.toolkit.run_folder import RUN_FILE, RunFolder
from tmi.training.accelerator import choose
from tmi.training.running import Running
from tmi.training.systems.registry import system

if TYPE_CHECKING:
    from tmi.training.cross_validation import Outcome
    from tmi.training.pretrained.initial_weights import Start

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def train(
    cohort: Annotated[Path | None, typer.Argument(help="Cohort folder; default: ./cohort or tmi.toml.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder; default: `./runs/<date>-<name>`.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run; default: the preset.")] = None,
    preset: Annotated[str | None, typer.Option("--preset", help="paper, released or tiny.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="System, see docs/systems.md; default: tmi-clnet.")
    ] = None,
    folds: Annotated[int | None, typer.Option("--folds", help="Folds of the cross-validation.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Epochs a fold.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="section.key=value; repeatable.")] = None,
    ct_weights: Annotated[
        Path | None, typer.Option("--ct-weights", help="3D ResNet weights (Hara, MedicalNet) for the CT encoder.")
    ] = None,
    text_weights: Annotated[
        Path | None, typer.Option("--text-weights", help="Folder of a BERT: its weights, sizes and vocabulary.")
    ] = None,
    vocab: Annotated[Path | None, typer.Option("--vocab", help="BERT vocab.txt, or a tokenizer.json.")] = None,
    schema: Annotated[
        Path | None, typer.Option("--schema", help="Clinical schema; default: tmi.toml's, else the liver's.")
    ] = None,
    mask_label: Annotated[int | None, typer.Option("--mask-label", help="Label of the liver in the masks.")] = None,
    freeze: Annotated[
        str | None, typer.Option("--freeze", help="ct, text, radiomics, ct:layer2, text:8, ...; commas between.")
    ] = None,
    precision: Annotated[str | None, typer.Option("--precision", help="32, bf16-mixed or 16-mixed.")] = None,
    accelerator: Annotated[str, typer.Option("--accelerator", help="cpu, gpu or auto.")] = "auto",
    devices: Annotated[int, typer.Option("--devices", help="Devices of this machine a fold is trained on.")] = 1,
    nodes: Annotated[int, typer.Option("--nodes", help="Machines, each started with its NODE_RANK.")] = 1,
    track: Annotated[
        list[str] | None, typer.Option("--track", help="tensorboard or mlflow, beside history.csv; repeatable.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say how much memory a step needs, and train nothing.")] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Prepare every case anew, and keep nothing.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a run that is there.")] = False,
) -> None:
    """Train fold models on a cohort: stratified folds grouped by patient, nothing fitted on what is reported.

    Ctrl-C leaves a run that --resume continues to the same result.

    Examples:

        tmi train
        tmi train cohort/ --out runs/first --preset tiny --folds 2
        tmi train cohort/ --out runs/first --preset tiny --folds 2 --resume
        tmi train cohort/ --ct-weights r3d50_K_200ep.pth --text-weights biobert-v1.1/ --freeze text
        tmi train --preset paper --precision bf16-mixed --plan
    """
    project = load_project()
    folder = cohort or project.path("cohort")
    chosen = preset or project.preset
    config = configure(chosen, folds, epochs, [*short(freeze, precision), *(settings or [])], model=model)
    fields = load_schema(schema or project.schema_file)
    start = settle_start(config, ct_weights, text_weights, settings or [], fields)
    config = start.config if start else config
    if vocab is None and (start is None or start.tokenizer is None):
        config = with_own_vocabulary(config)
    elif config.clinical.vocab_size is not None:  # the config says whether a vocabulary was fitted on the cohort
        config = replace(config, clinical=replace(config.clinical, vocab_size=None))
    if plan:
        _tell_plan(config, devices * nodes)
        return
    target = _target(project, out, name or chosen, resume=resume)
    for value, given, what in ((folder, cohort, "cohort"), (target, out, "run"), (chosen, preset, "preset")):
        if given is None:
            typer.echo(f"{what}: {value} (assumed)", err=True)
    data = open_cohort(folder, mask_label=mask_label)
    running = Running(accelerator=choose(accelerator), devices=devices, nodes=nodes, track=tuple(track or ()))
    running.check(config)
    if resume:
        if RunFolder.open(target).finished:
            typer.echo(f"run {target} is finished already; next: tmi export {target}")
            return
    elif running.node == 0:
        require_absent(target, force=force, kind="run")
        if target.exists():
            _replace(target)
    tell_start(start)
    _run(
        data,
        config,
        target,
        fields,
        vocab,
        start,
        running=running,
        resume=resume,
        name=name,
        cached=not no_cache,
    )


def short(freeze: str | None, precision: str | None) -> list[str]:
    """--freeze and --precision as settings."""
    parts = None if freeze is None else [part.strip() for part in freeze.split(",") if part.strip()]
    return [
        *([] if parts is None else [f"train.freeze={json.dumps(parts)}"]),
        *([] if precision is None else [f"train.precision={json.dumps(precision)}"]),
    ]


def _tell_plan(config: Config, devices: int) -> None:
    if system(config.system.name).needs == "sklearn":
        typer.echo(f"{config.system.name} has no network: it needs the memory of its table alone")
        return
    from tmi.training.memory import plan_memory

    typer.echo(plan_memory(config, devices=devices).told(), nl=False)


def configure(
    chosen: str, folds: int | None, epochs: int | None, settings: list[str], *, model: str | None = None
) -> Config:
    """The preset with the options of the command line applied.

    Raises:
        UsageError: no such preset, system or setting.
    """
    config = find_preset(chosen)
    if model is not None:
        system(model)  # names the known ones
        settings = [*settings, f"system.name={model}"]
    if folds is not None:
        config = replace(config, train=replace(config.train, folds=folds))
    if epochs is not None:
        config = replace(config, train=replace(config.train, epochs=epochs))
    return override(config, settings)


def settle_start(
    config: Config, ct: Path | None, text: Path | None, settings: list[str], schema: Schema
) -> Start | None:
    """Weights to start from, and the config fitted to them; None where none are given."""
    if ct is None and text is None:
        return None
    from tmi.training.pretrained.initial_weights import settle

    chosen = tuple(s.partition("=")[0].strip() for s in settings)
    return settle(config, ct=ct, text=text, chosen=chosen, schema=schema)


def tell_start(start: Start | None) -> None:
    """What the encoders start from."""
    if start is None:
        typer.echo("no pre-trained weights given: every encoder starts from random weights", err=True)
        return
    for line in (*start.notes, *(report.told() for report in start.weights.reports)):
        typer.echo(line, err=True)
    random = [name for name in ("ct", "text") if name not in start.weights.states]
    typer.echo(f"random weights: the {', '.join([*random, 'radiomics'])} encoder(s), interaction and head", err=True)


def with_own_vocabulary(config: Config) -> Config:
    """Without a given vocabulary every fold trains one on its training texts; the run's config records it.

    Encoders start from random weights, so no vocabulary is nearer to them than the cohort's own words.
    """
    if config.clinical.vocab_size is not None:
        return config
    rows = config.network.text_encoder.vocab_size
    typer.echo(
        f"no --vocab given: every fold trains a vocabulary of at most {rows} tokens on its training texts", err=True
    )
    return replace(config, clinical=replace(config.clinical, vocab_size=rows))


def _target(project: Project, out: Path | None, name: str, *, resume: bool) -> Path:
    if out is not None:
        return out
    if not resume:
        return new_run_folder(project, name)
    runs = sorted(project.path("runs").glob("*/run.json"), key=lambda file: file.stat().st_mtime)
    if not runs:
        raise UsageError("no run to resume", fix="name it with --out")
    return runs[-1].parent


def _replace(target: Path) -> None:
    """Remove a run that --force replaces, be it damaged or another version's; anything that is no run stays."""
    if any(target.iterdir()) and not (target / RUN_FILE).is_file():
        raise UsageError(
            f"{target} is there and is no run; --force replaces runs only", fix="name another place with --out"
        )
    shutil.rmtree(target)


def _run(
    data: Any,
    config: Config,
    target: Path,
    schema: Schema,
    vocab: Path | None,
    start: Start | None,
    *,
    running: Running,
    resume: bool,
    name: str | None,
    cached: bool,
) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from tmi.toolkit.prepared_cache import PreparedCache
    from tmi.training.cross_validation import cross_validate
    from tmi.training.run_bars import RunBars
    from tmi.training.vocabulary import read_vocabulary

    given = None if start is None else start.tokenizer
    tokenizer = given if vocab is None else read_vocabulary(vocab)
    cache = PreparedCache() if cached else None
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    try:
        with Progress(*columns, console=Console(stderr=True)) as progress:
            outcome = cross_validate(
                data,
                config,
                target,
                schema=schema,
                tokenizer=tokenizer,
                accelerator=running.accelerator,
                watcher=RunBars(progress),
                resume=resume,
                name=name,
                cache=cache,
                initial=None if start is None else start.weights,
                running=running,
            )
    except KeyboardInterrupt:
        typer.echo(f"interrupted; continue with the same command and --out {target} --resume", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if cache is not None:
        typer.echo(cache.told(), err=True)
    if running.node > 0:
        return
    _show(outcome)
    if outcome.refused:
        raise typer.Exit(int(ExitCode.REFUSED))


def _show(outcome: Outcome) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from tmi.training.metrics import METRICS
    from tmi.training.summary import TITLES, figure

    # narrow enough for 80 columns, so that no figure is broken over lines
    table = Table(
        title="Held-out cases, positive = bad prognosis", title_justify="left", box=SIMPLE_HEAD, collapse_padding=True
    )
    for title in ("fold", *TITLES.values(), "epoch", "cases"):
        table.add_column(title, justify="left" if title == "fold" else "right", no_wrap=True)
    for fold in outcome.summary["folds"]:
        row = (figure(fold["test"][m]) for m in METRICS)
        table.add_row(str(fold["fold"]), *row, str(fold["picked_epoch"]), str(fold["cases"]["test"]))
    table.add_section()
    for title, key in (("mean", "mean"), ("SD", "std")):
        table.add_row(title, *(figure(outcome.summary["over_folds"][m][key]) for m in METRICS))
    console = Console()
    console.print(table)
    for note in outcome.summary["notes"]:
        console.print(note, markup=False)
    if outcome.refused:
        console.print(f"{len(outcome.refused)} case(s) were left out; see above", markup=False)
    path = outcome.run.path
    typer.echo(f"run      {path}\nfigures  {path / 'summary.md'}\nnext     tmi export {path}")
