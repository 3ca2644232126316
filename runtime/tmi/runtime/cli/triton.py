"""`tmi triton`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tmi.runtime.cli.predict import TrustLevel
from tmi.toolkit.cli.completion import completes
from tmi.toolkit.cli.console import echo
from tmi.toolkit.cli.inputs import require_paths


class Graphs(StrEnum):
    """Backend of Triton for which each graph is a model of its own."""

    none = "none"
    onnxruntime = "onnxruntime"
    openvino = "openvino"
    tensorrt = "tensorrt"


def triton(
    bundle: Annotated[Path, typer.Argument(help="The bundle.", show_default=False)],
    repository: Annotated[Path, typer.Argument(help="Folder of the model repository.", show_default=False)],
    graphs: Annotated[
        Graphs, typer.Option(help="Write each graph as a model of this backend too, without preprocessing.")
    ] = Graphs.none,
    engine: Annotated[
        str,
        typer.Option(
            help="Engine of the model tmi: auto or a name of tmi bench.",
            autocompletion=completes("auto", of="tmi.runtime.engines.registry:ENGINES"),
        ),
    ] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            help="auto, or int8, bf16 or fp32 for engines that compute in it only.",
            autocompletion=completes(of="tmi.runtime.engines.precision:ALLOWED_PRECISIONS"),
        ),
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the engine. Default: all cores.", show_default=False)
    ] = None,
    trust_level: TrustLevel = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Requests taken from the queue together.")] = 4,
    max_delay_ms: Annotated[float, typer.Option(min=0, help="Milliseconds that a request waits for more.")] = 0,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait; more are rejected.")] = 16,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that a request may wait.")] = 300,
    key: Annotated[
        list[Path] | None,
        typer.Option(
            help="Public key (PEM) that must have signed the bundle; several: one of them.",
            envvar="TMI_KEY",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace models of the same names.")] = False,
) -> None:
    """Write a bundle as a model repository of NVIDIA Triton. For research use only.

    The model `tmi` runs on Triton's Python backend with preprocessing, checks and prediction of `tmi serve`, and has
    its inputs and outputs; Triton's machine needs `tmi-clnet[serve]`. Other models of the repository stay as they are.

    Examples:

        tmi triton ./bundle ./repository
        tmi triton ./bundle ./repository --graphs onnxruntime --max-batch 8
    """
    from tmi.runtime.engines.precision import allowed_precisions
    from tmi.runtime.engines.registry import engine_spec
    from tmi.runtime.triton.repository import RepositorySettings, write_repository

    require_paths(("bundle", bundle))
    if engine != "auto":
        engine_spec(engine)
    allowed_precisions(precision)
    settings = RepositorySettings(
        max_batch=max_batch,
        max_delay_ms=max_delay_ms,
        queue=queue,
        timeout_s=timeout,
        engine=engine,
        precision=precision,
        threads=threads,
        trust_level=trust_level,
    )
    names = write_repository(
        bundle,
        repository,
        settings=settings,
        graphs=None if graphs is Graphs.none else graphs.value,
        key=key,
        force=force,
    )
    echo(f"models {', '.join(names)} in {repository}; start: tritonserver --model-repository={repository}")
