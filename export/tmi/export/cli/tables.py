"""What `tmi export` and `tmi build` print about the checks that failed and about the bundle that was written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from tmi.runtime.bundle.check_result import CheckResult
    from tmi.runtime.bundle.reader import Bundle


def print_failures(records: Sequence[CheckResult]) -> None:
    """The table of what differs, on standard error."""
    from tmi.runtime.cli.tables.checks import failures_table, wide_console

    wide_console(stderr=True).print(failures_table(records), markup=False)


def print_bundle(bundle: Bundle) -> None:
    """What was written and how well it answers, on standard output."""
    manifest = bundle.manifest
    size = sum(f.bytes for f in manifest.files.values()) / 1e6
    graphs = ", ".join(g.name for g in manifest.graphs)
    kind = " of a synthetic cohort" if manifest.synthetic else ""
    typer.echo(f"bundle {bundle.folder}: {len(manifest.folds)} folds{kind}, graphs {graphs}, {size:.1f} MB")
    for name in dict.fromkeys(r.engine for r in manifest.parity if r.engine):
        mine = [r for r in manifest.parity if r.engine == name]
        logits = next(r for r in mine if r.gate == "logits")
        typer.echo(
            f"  {name:13} {len(mine)} gates held; logits differ from eager by {logits.measured:.1e} "
            f"(relative, allowed {logits.bound:.1e})"
        )
    for name, why in manifest.extra["engines_not_judged"].items():
        typer.echo(f"  {name:13} not judged: {why}")
    for name, why in manifest.extra.get("engines_refused", {}).items():
        typer.echo(f"  {name:13} refused, predictions take the next engine: {why}")
    if "tensorrt" in manifest.extra:
        print_plans(bundle)
    typer.echo(f"manifest {bundle.digest[:16]}; predict with: tmi predict CASE --bundle {bundle.folder}")


def print_plans(bundle: Bundle) -> None:
    """One line for each engine of TensorRT in a bundle, on standard output."""
    facts = bundle.manifest.extra.get("tensorrt", {})
    for name, about in facts.get("precision", {}).get("graphs", {}).items():
        half, kept = about.get("nodes_in_half", 0), len(about.get("nodes_in_float", {}))
        nodes = f": {half} nodes in FP16, {kept} in float32" if half else ""
        typer.echo(f"  {name:12} {about['precision']}{nodes}")
    for kind, about in facts.get("plans", {}).items():
        graphs = about["graphs"].values()
        size = sum(g["plan"]["bytes"] for g in graphs) / 1e6
        half, single = (sum(g[f"layers_in_{t}"] or 0 for g in graphs) for t in ("half", "float"))
        target = about["options"]["target"] or next(iter(graphs))["built_on"]
        builder = next(iter(graphs))["builder"]
        typer.echo(
            f"  {kind:12} {len(graphs)} plans for {target} by {builder}, {size:.1f} MB; layers: {half} HALF, "
            f"{single} FLOAT"
        )
