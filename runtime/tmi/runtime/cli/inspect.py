"""`tmi inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tmi.toolkit.cli.console import echo, echo_json, make_console
from tmi.toolkit.cli.inputs import resolve_bundle
from tmi.toolkit.cli.listing import Column, Listing, print_listing

if TYPE_CHECKING:
    from tmi.runtime.bundle.manifest import GraphSpec
    from tmi.runtime.bundle.reader import Bundle

SCHEMA = "tmi-inspection/2"
LEFT_OUT = ("files", "config")
"""Long parts of the manifest that `--json` replaces by totals; `manifest.json` holds them in full."""


def inspect(
    bundle: Annotated[
        Path | None,
        typer.Argument(help="The bundle. Default: TMI_BUNDLE, else ./bundle.", show_default=False),
    ] = None,
    key: Annotated[
        list[Path] | None,
        typer.Option(
            "--key",
            help="Public key (PEM) that must have signed the bundle; several: one of them.",
            envvar="TMI_KEY",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document (tmi-inspection/2).")] = False,
) -> None:
    """Show the contents of a bundle and the evidence of its export, without hashing files.

    Names and sizes of all files are compared with the manifest; `tmi verify` compares every byte and runs the engines.
    With --key every byte is compared here too, and the signature is checked.

    Examples:

        tmi inspect ./bundle
        tmi inspect ./bundle --json
    """
    from tmi.runtime.bundle.reader import inspect_bundle, open_bundle
    from tmi.runtime.bundle.signing import require_signature, required_keys

    bundle = resolve_bundle(bundle)
    keys = required_keys(key)
    opened = open_bundle(bundle) if keys else inspect_bundle(bundle)
    require_signature(opened, keys)
    if as_json:
        from tmi.toolkit.storage.hashing import canonical_json

        echo_json(canonical_json(_document(opened)))
    else:
        _print(opened, checked=bool(keys))


def _document(bundle: Bundle) -> dict[str, Any]:
    from tmi.runtime.bundle.manifest import manifest_to_json

    manifest = {k: v for k, v in manifest_to_json(bundle.manifest).items() if k not in LEFT_OUT}
    files = bundle.manifest.files
    return {
        "schema": SCHEMA,
        "folder": str(bundle.folder),
        "digest": bundle.digest,
        "signed": _signed(bundle),
        "files": len(files),
        "bytes": sum(f.bytes for f in files.values()),
        "engines": _engines(bundle),
        "manifest": manifest,
    }


def _signed(bundle: Bundle) -> bool:
    from tmi.runtime.bundle.manifest import SIGNATURE_FILE

    return (bundle.folder / SIGNATURE_FILE).is_file()


def _engines(bundle: Bundle) -> dict[str, str]:
    """Map each engine to `ready`, or to the reason why it cannot run here.

    Plans that another machine can run are `built, cannot run here`, with the reason.
    """
    from tmi.runtime.engines.precision import rejected_at_export
    from tmi.runtime.engines.registry import ENGINES, installed, unavailable_reason

    states = {}
    for name, spec in ENGINES.items():
        if not bundle.has(spec.artefact):
            states[name] = f"no {spec.artefact} graphs"
        elif (reason := rejected_at_export(bundle.manifest, name)) is not None:
            states[name] = reason
        elif spec.gpu and (reason := unavailable_reason(name, bundle)) is not None:
            states[name] = f"built, cannot run here: {reason}" if spec.plans else reason
        else:
            # For CPU engines the package is enough: asking OpenVINO about the processor would import it.
            states[name] = "ready" if installed(name) else f"{spec.package} is not installed"
    return states


def _print(bundle: Bundle, *, checked: bool) -> None:
    """Print the bundle; `checked`: every byte was compared and the signature is by the given key."""
    from tmi.runtime.bundle.manifest import FUSION
    from tmi.runtime.bundle.signing import SIGNED
    from tmi.runtime.cli.tables.checks import checks_table
    from tmi.runtime.cli.tables.tensorrt import emulation_lines, plans_table

    manifest = bundle.manifest
    kind = "a synthetic cohort" if manifest.synthetic else "a cohort"
    size = sum(f.bytes for f in manifest.files.values())
    signature = SIGNED if checked else "signed (check with --key)" if _signed(bundle) else "not signed"
    compared = "every byte as exported" if checked else "names and sizes as exported, contents not hashed (tmi verify)"
    positive = manifest.classes[manifest.positive]
    rows = {
        "bundle": f"{bundle.folder}, manifest {bundle.digest}",
        "run": f"{manifest.run.name}, preset {manifest.preset}, {kind} of {_shown(manifest.run.cohort.cases)} cases",
        "exported": f"{manifest.created} on {_shown(manifest.hardware and manifest.hardware.cpu)}",
        "classes": f"{', '.join(manifest.classes)}; {positive} if p({positive}) >= {manifest.threshold:g}",
        "network": f"{manifest.config.system.name}, uses {', '.join(manifest.modalities)}",
        "folds": "; ".join(f"{f.fold}: {', '.join(g for g in (f.ct, f.text) if g) or FUSION}" for f in manifest.folds),
        "files": f"{len(manifest.files)}, {_size(size)}; {compared}",
        "signature": signature,
        "golden": f"{manifest.golden.count} cases from seed {manifest.golden.seed}"
        + ("" if manifest.golden.float32_noise else "; no float64 reference at this size"),
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(manifest.versions.items())),
        "engines": "; ".join(f"{name}: {state}" for name, state in _engines(bundle).items()),
    }
    for name, text in rows.items():
        echo(f"{name:10} {text}")
    console = make_console()
    print_listing(console, _graphs(bundle))
    plans = plans_table(manifest)
    if plans is not None:
        print_listing(console, plans)
        for line in emulation_lines(manifest):
            echo(f"emulation  {line}")
    print_listing(console, checks_table(manifest.parity))
    echo("for research use only; MODEL_CARD.md states the intended use and its limits")


def _shown(value: object) -> str:
    return "?" if value is None else str(value)


def _graphs(bundle: Bundle) -> Listing:
    columns = (Column("graph"), *(Column(title, wrap=True) for title in ("inputs", "outputs", "files")))
    rows = [
        (graph.name, _tensors(graph.inputs), _tensors(graph.outputs), _files(bundle, graph))
        for graph in bundle.manifest.graphs
    ]
    return Listing(columns=columns, rows=rows)


def _tensors(specs: Any) -> str:
    return ", ".join(f"{t.name} [{','.join(map(str, t.shape))}]" for t in specs)


def _files(bundle: Bundle, graph: GraphSpec) -> str:
    files = bundle.manifest.files
    return ", ".join(f"{kind} {_size(files[name].bytes)}" for kind, name in graph.artefacts.items())


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
