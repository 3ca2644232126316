"""Command `tmi export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tmi.export.cli.tensorrt_options import Hardware, Level, MaxBatch, PlanWeights, Target, TimingCache, Workspace
from tmi.toolkit.cli.completion import completes
from tmi.toolkit.cli.console import echo
from tmi.toolkit.cli.inputs import (
    require_case_paths,
    require_folder_name,
    require_paths,
    require_run,
    require_used_key,
    split_names,
)
from tmi.toolkit.cli.progress import show_steps


def export(
    context: typer.Context,
    run: Annotated[
        Path | None,
        typer.Argument(help="Folder of a finished run. Default: the newest one in ./runs.", show_default=False),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help="onnx, onnx-int8, torchscript, trt, trt-rtx or torch-trt; several with commas, or repeated. "
            "Default: onnx.",
            show_default=False,
            autocompletion=completes(of="tmi.export.graphs.registry:EXPORTERS"),
        ),
    ] = None,
    add: Annotated[
        bool,
        typer.Option("--add", help="Add the engines to an existing bundle of the same run, after the same checks."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the bundle. Default: ./bundle.", show_default=False)
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an existing bundle; with --add: engines that it has.")
    ] = False,
    cases: Annotated[
        list[Path] | None,
        typer.Option(
            help="Case or cohort folder to validate the engines on, in addition to the golden inputs; may be repeated. "
            "Only hashes and outputs are stored in the bundle.",
            show_default=False,
        ),
    ] = None,
    no_weights: Annotated[
        bool, typer.Option("--no-weights", help="Omit the eager weights; the engine eager cannot run without them.")
    ] = False,
    precision: Annotated[
        str | None,
        typer.Option(
            help="int8 adds quantised graphs for the CPU (onnx-int8); auto tries them, and leaves them out with the "
            "reason if they fail a check. Of TensorRT engines: fp16, int8, tf32, fp32, or auto to search; default: "
            "fp16.",
            show_default=False,
            autocompletion=completes(of="tmi.export.tensorrt.precision_choice:PRECISIONS"),
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="COHORT",
            help="Cohort that the run was trained on: its training cases calibrate INT8. Default: ./cohort or "
            "tmi.toml's. Only hashes of them are stored in the bundle.",
            show_default=False,
        ),
    ] = None,
    target: Target = None,
    max_batch: MaxBatch = 4,
    hardware: Hardware = "none",
    level: Level = 3,
    workspace_mib: Workspace = None,
    plan_weights: PlanWeights = "inside",
    timing_cache: TimingCache = None,
    no_memory_check: Annotated[
        bool,
        typer.Option("--no-memory-check", help="Export even if the machine has less memory than the export needs."),
    ] = False,
    key: Annotated[
        list[Path] | None,
        typer.Option(
            "--key",
            help="With --add: public key (PEM) that must have signed the bundle; several: one of them.",
            envvar="TMI_KEY",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Export a run's fold models as one bundle and check it against them.

    The graphs run on golden inputs and are compared with the eager models. If a parity check fails, nothing is written,
    a table lists the differences, and the exit code is 4.

    --add extends a bundle of the same run. Its files and records stay, a signature is removed, and the old bundle is
    unchanged if anything fails.

    A TensorRT engine that this machine cannot build is left to `tmi build` on the GPU machine: the bundle is written
    with the checked graphs to build it from, and the exit code is 5.

    Examples:

        tmi export
        tmi export ./runs/2026-01-31-tiny --engine onnx,torchscript --out ./bundle
        tmi export --add --engine trt-rtx --precision auto --target sm80
        tmi export ./runs/2026-01-31-tiny --precision int8 --calibration ./cohort
    """
    from tmi.export.bundle.additions import require_addable
    from tmi.export.bundle.context import INT8_PRECISION, ExportSettings
    from tmi.export.bundle.request_checks import check_request, tries_int8, with_int8
    from tmi.export.cli.tables import print_bundle, print_failures, print_signature_removed
    from tmi.export.cli.tensorrt_options import build_options
    from tmi.export.graphs.registry import INT8, exporter_spec, require_exporter
    from tmi.runtime.bundle.check_result import ParityError
    from tmi.runtime.bundle.manifest import SIGNATURE_FILE
    from tmi.toolkit.cases.case import is_cohort
    from tmi.toolkit.config.project import PROJECT_FILE, load_project, newest_finished_run
    from tmi.toolkit.errors import UsageError

    project = load_project()
    if run is not None:
        require_run(run)  # before the other defaults: a mistyped run is no fault of the bundle
    require_paths(("--cases", cases), ("--calibration", calibration))
    require_paths(("--timing-cache folder", None if timing_cache is None else timing_cache.parent))
    if cases:
        require_case_paths(cases)
    reason = {
        name: f"from {PROJECT_FILE}" if name in project.from_file else "the default"
        for name in ("engine", "bundle", "cohort")
    }
    engine = split_names(engine)
    if not add:
        require_used_key(context, "a new bundle is not signed yet", fix="omit it, or sign the bundle with tmi sign")
    if add and no_weights:
        raise UsageError(
            "--no-weights is for a new bundle; --add keeps its weights as they are", fix="omit one of the two"
        )
    if add and not engine and precision == INT8_PRECISION:
        engine = [INT8]
    if add and not engine:
        raise UsageError(
            "--add needs the engines to add", fix="name them with --engine, for example --engine torchscript"
        )
    if not engine:
        engine = [project.engine]
        echo(f"engine {engine[0]} ({reason['engine']})", err=True)
    for name in engine:
        require_exporter(name)
    optional = not add and tries_int8(engine, precision)
    calibrated = INT8 in engine or precision == INT8_PRECISION or optional
    if calibrated and calibration is None and is_cohort(project.path("cohort")):
        calibration = project.path("cohort")
        echo(f"calibration {calibration} ({reason['cohort']})", err=True)
    if optional:
        precision = None if calibration is None else INT8_PRECISION
        if calibration is None:
            echo("INT8 is not tried: it is calibrated on the run's cohort (--calibration)", err=True)
    engine, precision = with_int8(engine, precision)
    plans = [name for name in engine if exporter_spec(name).plan is not None]
    if precision is not None and not plans:
        raise UsageError(
            f"--precision {precision} is for TensorRT engines, and none is named",
            fix="omit it, or add --engine trt",
        )
    options = build_options(
        plans,
        target=target,
        max_batch=max_batch,
        hardware=hardware,
        level=level,
        workspace_mib=workspace_mib,
        plan_weights=plan_weights,
        timing_cache=timing_cache,
    )
    if run is None:
        run = newest_finished_run(project)
        echo(f"run {run} (the newest finished one)", err=True)
    if out is None:
        out = project.path("bundle")
        echo(f"bundle {out} ({reason['bundle']})", err=True)
    require_folder_name(out, kind="bundle")
    check_request(
        run, None if add else out, artefacts=engine, precision=precision, force=force, calibration=calibration
    )
    if add:
        require_addable(out, engine, precision=precision, force=force)
    settings = ExportSettings(
        cases=tuple(cases or ()),
        calibration=calibration,
        int8_optional=optional,
        precision=precision,
        options=options,
        check_memory=not no_memory_check,
    )
    signed = add and (out / SIGNATURE_FILE).exists()
    try:
        with show_steps("loading torch") as step:
            from tmi.export.bundle.writer import add_to_bundle, export_run

            if add:
                bundle = add_to_bundle(
                    run, out, artefacts=engine, force=force, key=key, settings=settings, progress=step
                )
            else:
                bundle = export_run(
                    run, out, artefacts=engine, force=force, weights=not no_weights, settings=settings, progress=step
                )
    except ParityError as error:
        print_failures(error.records)
        raise
    print_bundle(bundle)
    if signed:
        print_signature_removed(out)
    if plans:
        from tmi.export.tensorrt.engines import require_complete

        require_complete(bundle, plans)
