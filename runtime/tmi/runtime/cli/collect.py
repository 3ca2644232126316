"""`tmi collect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tmi.toolkit.cli.console import echo
from tmi.toolkit.cli.inputs import require_case_paths, require_paths, resolve_bundle
from tmi.toolkit.errors import UsageError


def collect(
    cohort: Annotated[Path, typer.Argument(help="Cohort folder that was predicted.", show_default=False)],
    parts: Annotated[
        list[Path], typer.Argument(help="Result logs of `tmi predict --shard`, one of each shard.", show_default=False)
    ],
    bundle: Annotated[
        Path | None,
        typer.Option(help="Bundle that predicted. Default: TMI_BUNDLE, else ./bundle.", show_default=False),
    ] = None,
    key: Annotated[
        list[Path] | None,
        typer.Option(
            help="Public key (PEM) that must have signed the bundle; several: one of them.",
            envvar="TMI_KEY",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document (tmi-prediction/3).")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the results to FILE: .json or .csv by its ending.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    no_files: Annotated[
        bool, typer.Option("--no-files", help="Do not compare the cases' files with those that were predicted.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 3 also for a prediction with an alert.")] = False,
) -> None:
    """Join the results of a cohort's shards into the document of a single prediction.

    Nothing is written unless every shard is there once, all have the same bundle, engine and options, every case of the
    cohort has one result, and no case has changed since.

    Examples:

        tmi collect cohort/ part.1.jsonl part.2.jsonl -o predictions.json
        tmi collect cohort/ part.1.jsonl part.2.jsonl --bundle ./bundle -o predictions.csv
    """
    from tmi.runtime.bundle.reader import inspect_bundle, open_bundle
    from tmi.runtime.bundle.signing import require_signature, required_keys
    from tmi.runtime.cli.predict import exit_if_rejected, print_results, require_writable
    from tmi.runtime.serving.collected import collect as join
    from tmi.runtime.serving.predictor import resolve_cases
    from tmi.runtime.serving.results import RejectedCase
    from tmi.toolkit.storage.outputs import output_lock

    require_case_paths([cohort])
    require_paths(("result log", parts))
    if out is not None and out.suffix.lower() == ".jsonl":
        raise UsageError("collected results are not written as .jsonl", fix="name a file that ends in .json or .csv")
    if out is not None:
        require_writable(out, force=force, resume=False)
    keys, named = required_keys(key), resolve_bundle(bundle)
    opened = open_bundle(named) if keys else inspect_bundle(named)
    require_signature(opened, keys)
    collected = join(resolve_cases(cohort), parts, check_files=not no_files)
    if collected.bundle != opened.digest:
        raise UsageError(
            f"the shards were predicted by another bundle ({collected.bundle[:16]}, not {opened.digest[:16]})",
            fix="name it with --bundle",
        )
    rejected = sum(isinstance(result, RejectedCase) for result in collected.results)
    echo(f"{len(parts)} shards: {len(collected.results) - rejected} predicted, {rejected} rejected", err=True)
    results = collected.results
    if out is None:
        print_results(results, opened, collected.engine, batch=collected.batch, as_json=as_json, out=None)
    else:
        with output_lock(out, kind="prediction file"):
            print_results(results, opened, collected.engine, batch=collected.batch, as_json=as_json, out=out)
    exit_if_rejected(results, strict=strict)
