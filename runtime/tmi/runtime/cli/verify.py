"""`tmi verify`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tmi.toolkit.cli.completion import completes
from tmi.toolkit.cli.console import echo, echo_json, make_console
from tmi.toolkit.cli.inputs import limit_to_cores, require_paths, require_run, resolve_bundle
from tmi.toolkit.cli.listing import print_listing
from tmi.toolkit.cli.progress import show_steps
from tmi.toolkit.errors import UnavailableError, UsageError

if TYPE_CHECKING:
    from tmi.runtime.bundle.check_result import CheckResult
    from tmi.runtime.bundle.reader import Bundle
    from tmi.runtime.serving.held_out import HeldOutRow
    from tmi.runtime.verification.verify import Verification

SCHEMA = "tmi-verification/1"
REBUILD = "tmi.export.bundle.rebuild:compare_with_rebuild"
"""Function behind `--rebuild`: the runtime does not import the export, which a serving machine does not have."""


def verify(
    bundle: Annotated[
        Path | None,
        typer.Argument(help="The bundle. Default: TMI_BUNDLE, else ./bundle.", show_default=False),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help="Engine to validate; may be repeated. Default: every installed one that has graphs in the bundle.",
            show_default=False,
            autocompletion=completes(of="tmi.runtime.engines.registry:ENGINES"),
        ),
    ] = None,
    key: Annotated[
        list[Path] | None,
        typer.Option(
            help="Public key (PEM) that must have signed the bundle; several: one of them.",
            envvar="TMI_KEY",
            show_default=False,
        ),
    ] = None,
    rebuild: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Run that the bundle was exported from: export it again and compare every byte. Needs the packages of "
            "tmi export.",
            show_default=False,
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Run that the bundle was exported from: predict its held-out cases on each engine and compare AUC and "
            "decisions with those that the training recorded.",
            show_default=False,
        ),
    ] = None,
    cohort: Annotated[
        Path | None,
        typer.Option(
            help="Cohort that the run was trained on, for --run, and for --rebuild of a bundle with INT8. Default: "
            "./cohort or tmi.toml's.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of each engine. Default: all cores.", show_default=False)
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Print one row for each engine and check, not one for each engine.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document (tmi-verification/1).")] = False,
) -> None:
    """Verify that a bundle is unchanged and that this machine's engines match the validated model.

    Checks the digest of every file, the manifest, the signature (with --key), the preprocessing of a golden case, and
    every parity check on every engine. Exit code 0: all passed; 4: a check failed; 5: an engine is not available; 6:
    the bundle was changed, is not signed by the key, or (with --rebuild) is not what its run gives.

    Examples:

        tmi verify ./bundle
        tmi verify ./bundle --all
        tmi verify ./bundle --engine openvino --key public.pem --json
        tmi verify ./bundle --rebuild ./runs/2026-01-31-tiny
        tmi verify ./bundle --run ./runs/2026-01-31-tiny --cohort ./cohort --engine openvino-int8
    """
    from tmi.runtime.verification.verify import verify_bundle

    for given in (rebuild, run):
        if given is not None:
            require_run(given)
    cohort = _cohort(cohort, run=run, rebuild=rebuild)
    threads = limit_to_cores(threads, option="--threads")
    bundle = resolve_bundle(bundle)
    with show_steps("opening") as step:
        verification = verify_bundle(bundle, engines=engine or (), key=key, threads=threads, progress=step)
        rebuilt = None
        if rebuild is not None and verification.passed:
            rebuilt = _compare_with_rebuild(verification.bundle, rebuild, cohort, step)
        held_out: list[HeldOutRow] = []
        if run is not None and verification.passed:
            from tmi.runtime.serving.held_out import compare_held_out

            assert cohort is not None  # `_cohort` requires it
            held_out = compare_held_out(
                verification.bundle, run, cohort, verification.engines, threads=threads, progress=step
            )
    if as_json:
        from tmi.toolkit.storage.hashing import canonical_json

        document = _document(verification)
        document |= {} if rebuilt is None else {"rebuild": vars(rebuilt)}
        document |= {"held_out": [vars(row) for row in held_out]} if held_out else {}
        echo_json(canonical_json(document))
    else:
        _print(verification, every=every)
        if held_out:
            from tmi.runtime.cli.tables.checks import held_out_table

            print_listing(make_console(), held_out_table(held_out))
        if rebuilt is not None:
            echo(f"an export of run {rebuilt.run} gives the same bytes: {rebuilt.files} files and the manifest")
    _require_passed(verification)


def _cohort(given: Path | None, *, run: Path | None, rebuild: Path | None) -> Path | None:
    """The cohort of the run; None if there is none and only `--rebuild` may need it."""
    if given is not None and run is None and rebuild is None:
        raise UsageError("--cohort is for --run and --rebuild, and neither is given", fix="omit it, or add --run RUN")
    require_paths(("--cohort", given))
    if given is not None or (run is None and rebuild is None):
        return given
    from tmi.toolkit.cases.case import is_cohort
    from tmi.toolkit.config.project import load_project

    default = load_project().path("cohort")
    if is_cohort(default):
        return default
    if run is not None:
        raise UsageError("--run needs the cohort that the run was trained on", fix="name it with --cohort")
    return None


def _compare_with_rebuild(bundle: Bundle, run: Path, cohort: Path | None, progress: Callable[[str], None]) -> Any:
    """Call the function of the export that compares a bundle with its run, which the runtime does not import."""
    module, _, function = REBUILD.partition(":")
    try:
        compare = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        raise UnavailableError(
            f"tmi verify --rebuild needs the package {error.name}, which is not installed",
            fix="pip install 'tmi-clnet[export]'",
        ) from error
    return compare(bundle, run, calibration=cohort, progress=progress)


def _require_passed(verification: Verification) -> None:
    from tmi.runtime.bundle.check_result import ParityError

    failed = [r for r in verification.records if not r.passed]
    if failed:
        first = failed[0]
        raise ParityError(
            f"{len(failed)} of {len(verification.records)} parity checks failed, first {first.check} of {first.graph} "
            f"({first.engine or first.artefact}): {first.detail}",
            fix="do not use this bundle with the engine that failed; docs/parity.md describes each check. Another "
            "engine, or the package versions named in the manifest, may pass",
            records=verification.records,
        )


def _document(verification: Verification) -> dict[str, Any]:
    from importlib.metadata import version

    from tmi.runtime.engines.host import hardware
    from tmi.toolkit.storage.serialization import to_json

    def to_plain(record: CheckResult) -> dict[str, Any]:
        # JSON has no infinity: an unbounded error is written as null
        measured = record.measured if record.measured is not None and record.measured < float("inf") else None
        # The document keeps the name that the check was published with.
        return {"gate" if name == "check" else name: value for name, value in to_json(record).items()} | {
            "measured": measured
        }

    return {
        "schema": SCHEMA,
        "bundle": {"folder": str(verification.bundle.folder), "digest": verification.bundle.digest},
        "version": version("tmi-clnet"),
        "hardware": hardware(),
        "signature": verification.signature,
        "passed": verification.passed,
        "engines": list(verification.engines),
        "passed_over": verification.skipped,
        "gates": [to_plain(r) for r in verification.records],
    }


def _print(verification: Verification, *, every: bool) -> None:
    """Print every failed check in full, then one row for each engine, or with `every` for each engine and check."""
    from tmi.runtime.cli.tables.checks import checks_table, failures_table, summary_table

    console = make_console()
    manifest = verification.bundle.manifest
    echo(
        f"bundle {verification.bundle.folder}: {len(manifest.files)} files as exported, "
        f"manifest {verification.bundle.digest[:16]}, {verification.signature}"
    )
    failed: Sequence[CheckResult] = [r for r in verification.records if not r.passed]
    if failed:
        print_listing(console, failures_table(verification.records))
    print_listing(console, (checks_table if every else summary_table)(verification.records))
    for name, why in verification.skipped.items():
        echo(f"engine {name} was not validated: {why}")
    if not failed:
        echo(f"all {len(verification.records)} parity checks passed")
