"""Command `tmi build`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tmi.export.cli.tensorrt_options import Hardware, Level, MaxBatch, PlanWeights, Target, TimingCache, Workspace
from tmi.toolkit.cli.inputs import require_paths, resolve_bundle, split_names
from tmi.toolkit.cli.progress import show_steps


def build(
    bundle: Annotated[
        Path | None,
        typer.Argument(help="Folder of the bundle. Default: TMI_BUNDLE, else ./bundle.", show_default=False),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help="trt, trt-rtx or torch-trt; several with commas, or repeated. Default: those that the export could "
            "not build.",
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
    key: Annotated[
        list[Path] | None,
        typer.Option(
            "--key",
            help="Public key (PEM) that must have signed the bundle; several: one of them.",
            envvar="TMI_KEY",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Build the TensorRT engines of a bundle, on the machine that has the GPU.

    The golden cases run through the new engines before the bundle is replaced. If a parity check fails, the bundle is
    unchanged and the exit code is 4.

    Examples:

        tmi build ./bundle
        tmi build ./bundle --engine trt-rtx --target sm86
    """
    from tmi.export.bundle.engine_builder import build_bundle
    from tmi.export.cli.tables import print_failures, print_plans, print_signature_removed
    from tmi.export.cli.tensorrt_options import build_options
    from tmi.export.tensorrt.engines import pending_engines
    from tmi.runtime.bundle.check_result import ParityError
    from tmi.runtime.bundle.manifest import SIGNATURE_FILE
    from tmi.runtime.bundle.reader import inspect_bundle

    require_paths(("--timing-cache folder", None if timing_cache is None else timing_cache.parent))
    bundle = resolve_bundle(bundle)
    kinds = split_names(engine) or list(pending_engines(inspect_bundle(bundle).manifest))
    signed = (bundle / SIGNATURE_FILE).exists()
    options = build_options(
        kinds,
        target=target,
        max_batch=max_batch,
        hardware=hardware,
        level=level,
        workspace_mib=workspace_mib,
        plan_weights=plan_weights,
        timing_cache=timing_cache,
    )

    try:
        with show_steps("opening the bundle") as step:
            built = build_bundle(bundle, kinds, options=options, key=key, progress=step)
    except ParityError as error:
        print_failures(error.records)
        raise
    print_plans(built)
    if signed:
        print_signature_removed(bundle)
