"""Output of `tmi export` and `tmi build`: failed checks, the written bundle, its TensorRT plans."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tmi.toolkit.cli.console import echo, make_console
from tmi.toolkit.cli.listing import print_listing

if TYPE_CHECKING:
    from tmi.runtime.bundle.check_result import CheckResult
    from tmi.runtime.bundle.reader import Bundle


def print_failures(records: Sequence[CheckResult]) -> None:
    """Print the table of failed checks on standard error."""
    from tmi.runtime.cli.tables.checks import failures_table

    print_listing(make_console(stderr=True), failures_table(records))


def print_bundle(bundle: Bundle) -> None:
    """Print a bundle's contents and the logit error of each engine on standard output."""
    manifest = bundle.manifest
    size = sum(f.bytes for f in manifest.files.values()) / 1e6
    graphs = ", ".join(g.name for g in manifest.graphs)
    kind = " of a synthetic cohort" if manifest.synthetic else ""
    echo(f"bundle {bundle.folder}: {len(manifest.folds)} folds{kind}, graphs {graphs}, {size:.1f} MB")
    for name in dict.fromkeys(r.engine for r in manifest.parity if r.engine):
        records = [r for r in manifest.parity if r.engine == name]
        logits = next(r for r in records if r.check == "logits")
        echo(
            f"  {name:13} {len(records)} checks passed; logits differ from eager by {logits.measured:.1e} "
            f"(relative, allowed {logits.bound:.1e})"
        )
    for name, reason in manifest.engines_not_validated.items():
        echo(f"  {name:13} not validated: {reason}")
    for name, reason in manifest.engines_rejected.items():
        echo(f"  {name:13} rejected, predictions use the next engine: {reason}")
    for addition in manifest.additions:
        echo(f"  added {addition.created}: {', '.join(addition.artefacts)}")
    if manifest.tensorrt is not None:
        print_plans(bundle)
    echo(f"manifest {bundle.digest[:16]}; predict with: tmi predict CASE --bundle {bundle.folder}")


def print_signature_removed(folder: Path) -> None:
    """State on standard error that a changed bundle has lost its signature."""
    echo(f"signature removed: it covered the old files; sign again with `tmi sign {folder} --key KEY`", err=True)


def print_plans(bundle: Bundle) -> None:
    """Print the precision of each graph and one line for each TensorRT engine on standard output."""
    record = bundle.manifest.tensorrt
    if record is None:
        return
    for name, graph in ({} if record.precision is None else record.precision.graphs).items():
        fp16, float32 = graph.nodes_in_half, len(graph.nodes_in_float)
        first = f"{fp16} nodes in FP16" if fp16 else f"{graph.nodes_in_int8} nodes in INT8"
        nodes = f": {first}, {float32} in float32" if fp16 or graph.nodes_in_int8 else ""
        echo(f"  {name:12} {graph.precision}{nodes}")
    for kind, engine in record.plans.items():
        plans = list(engine.graphs.values())
        size = sum(p.plan.bytes for p in plans) / 1e6
        half, single = sum(p.layers_in_half or 0 for p in plans), sum(p.layers_in_float or 0 for p in plans)
        eight = sum(p.layers_in_int8 or 0 for p in plans)
        target = engine.options.target or plans[0].built_on
        echo(
            f"  {kind:12} {len(plans)} plans for {target} by {plans[0].builder}, {size:.1f} MB; layers: "
            f"{f'{eight} INT8, ' if eight else ''}{half} HALF, {single} FLOAT"
        )
