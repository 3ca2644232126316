"""TensorRT build options of `tmi export` and `tmi build`. Importing this module imports no heavy package."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from tmi.toolkit.cli.completion import completes
from tmi.toolkit.cli.console import echo
from tmi.toolkit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tmi.export.tensorrt.builder import BuildOptions, HardwareLevel, WeightsMode

DEFAULT_TARGET = "sm80"
"""Target of TensorRT-RTX plans on a machine without a GPU: A100."""
HARDWARE = ("none", "ampere-plus", "same-compute-capability")
WEIGHTS = ("inside", "refit", "strip")

Target = Annotated[
    str | None,
    typer.Option(
        help="Target GPU of trt-rtx plans: sm75, sm80 (A100), sm86, sm89 or sm120. Default: this machine's, else sm80.",
        show_default=False,
        autocompletion=completes(of="tmi.export.tensorrt.builder:TARGETS"),
    ),
]
MaxBatch = Annotated[int, typer.Option(min=1, help="Largest batch of TensorRT engines.")]
Hardware = Annotated[
    str,
    typer.Option(
        "--hardware-compatibility",
        help=f"GPUs that trt engines must run on: {', '.join(HARDWARE)}.",
        autocompletion=completes(*HARDWARE),
    ),
]
Level = Annotated[
    int, typer.Option("--optimisation-level", min=0, max=5, help="How long TensorRT searches for faster kernels.")
]
Workspace = Annotated[
    int | None,
    typer.Option("--workspace-mib", min=1, help="Memory limit of TensorRT's kernels.", show_default=False),
]
PlanWeights = Annotated[
    str,
    typer.Option(
        "--plan-weights",
        help="inside: stored in each plan; refit: stored and refittable; strip: read from the ONNX file at load time.",
        autocompletion=completes(*WEIGHTS),
    ),
]
TimingCache = Annotated[
    Path | None,
    typer.Option("--timing-cache", help="File of TensorRT's timing cache, kept between builds.", show_default=False),
]


def build_options(
    kinds: Sequence[str],
    *,
    target: str | None,
    max_batch: int,
    hardware: str,
    level: int,
    workspace_mib: int | None,
    plan_weights: str,
    timing_cache: Path | None,
) -> BuildOptions:
    """Validate the options of the command line, and set the target of TensorRT-RTX if none is given.

    The maximum text length is set later, from the bundle.

    Args:
        kinds: TensorRT engines to build.
        target, max_batch, hardware, level, workspace_mib, plan_weights, timing_cache: the options of this module.

    Raises:
        UsageError: an unknown value, or a target for an engine that has none.
    """
    from tmi.export.tensorrt.builder import BuildOptions
    from tmi.export.tensorrt.engines import require_target
    from tmi.runtime.engines.nvidia_driver import find_gpu

    for value, known, name in (
        (hardware, HARDWARE, "--hardware-compatibility"),
        (plan_weights, WEIGHTS, "--plan-weights"),
    ):
        if value not in known:
            raise UsageError(f"unknown {name} {value!r}", fix=f"choose one of {', '.join(known)}")
    require_target(kinds, target)
    options = BuildOptions(
        target=target,
        max_batch=max_batch,
        hardware=cast("HardwareLevel", hardware),
        optimisation_level=level,
        workspace_mib=workspace_mib,
        weights=cast("WeightsMode", plan_weights),
        timing_cache=timing_cache,
    )
    if "trt-rtx" not in kinds or target is not None:
        return options
    gpu = find_gpu()
    default = DEFAULT_TARGET if gpu is None else gpu.target
    echo(f"target {default} ({'no GPU here: A100' if gpu is None else gpu.name})", err=True)
    return replace(options, target=default)
