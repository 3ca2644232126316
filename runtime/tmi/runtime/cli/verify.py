"""`tmi verify`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tmi.runtime.bundle.check_result import CheckResult
    from tmi.runtime.verification.verify import Verification

SCHEMA = "tmi-verification/1"


def verify(
    bundle: Annotated[
        Path | None,
        typer.Argument(help="The bundle. Default: TMI_BUNDLE, else ./bundle.", show_default=False),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help="Engine to judge; may be repeated. Default: every one installed that has graphs in the bundle.",
            show_default=False,
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(help="Public key (PEM) that must have signed the bundle.", envvar="TMI_KEY", show_default=False),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of each engine. Default: all cores.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document (tmi-verification/1).")] = False,
) -> None:
    """Check that a bundle is what was exported and that this machine's engines answer like the validated model.

    Fingerprints, manifest, signature (with --key), preparation of a golden case, and every parity gate on every engine.
    Exit code 0: all held; 4: a gate failed; 5: an engine is not there; 6: the bundle was changed or is not signed by
    the key.

    Examples:

        tmi verify ./bundle
        tmi verify ./bundle --engine openvino --key public.pem --json
    """
    from rich.console import Console

    from tmi.runtime.verification.verify import verify_bundle
    from tmi.toolkit.config.project import default_bundle, load_project

    if bundle is None:
        bundle, reason = default_bundle(load_project())
        typer.echo(f"bundle {bundle} ({reason})", err=True)
    with Console(stderr=True).status("opening") as status:
        found = verify_bundle(bundle, engines=engine or (), key=key, threads=threads, progress=status.update)
    if as_json:
        from tmi.toolkit.storage.hashing import canonical_json

        sys.stdout.write(canonical_json(_document(found)))
    else:
        _print(found)
    _require_passed(found)


def _require_passed(found: Verification) -> None:
    from tmi.runtime.bundle.check_result import ParityError

    failed = [r for r in found.records if not r.passed]
    if failed:
        first = failed[0]
        raise ParityError(
            f"{len(failed)} of {len(found.records)} parity gates failed, first {first.gate} of {first.graph} "
            f"({first.engine or first.artefact}): {first.detail}",
            fix="do not use this bundle with what failed here; docs/parity.md says what each gate means. Another "
            "engine, or the versions that the manifest names, may hold",
            records=found.records,
        )


def _document(found: Verification) -> dict[str, Any]:
    from importlib.metadata import version

    from tmi.runtime.engines.host import hardware
    from tmi.toolkit.storage.serialization import to_json

    def plain(record: CheckResult) -> dict[str, Any]:
        # JSON has no infinity: what could not be measured has no figure
        measured = record.measured if record.measured is not None and record.measured < float("inf") else None
        return to_json(record) | {"measured": measured}

    return {
        "schema": SCHEMA,
        "bundle": {"folder": str(found.bundle.folder), "digest": found.bundle.digest},
        "version": version("tmi-clnet"),
        "hardware": hardware(),
        "signature": found.signature,
        "passed": found.passed,
        "engines": list(found.engines),
        "passed_over": found.skipped,
        "gates": [plain(r) for r in found.records],
    }


def _print(found: Verification) -> None:
    """One row a gate and engine, the worst figure of it; failures in full below."""
    from tmi.runtime.cli.tables.checks import checks_table, failures_table, wide_console

    console = wide_console()
    manifest = found.bundle.manifest
    typer.echo(
        f"bundle {found.bundle.folder}: {len(manifest.files)} files as exported, manifest {found.bundle.digest[:16]}, "
        f"{found.signature}"
    )
    console.print(checks_table(found.records), markup=False)
    for name, why in found.skipped.items():
        typer.echo(f"engine {name} was not judged: {why}")
    failed: Sequence[CheckResult] = [r for r in found.records if not r.passed]
    if failed:
        console.print(failures_table(found.records), markup=False)
    else:
        typer.echo(f"all {len(found.records)} gates held")
