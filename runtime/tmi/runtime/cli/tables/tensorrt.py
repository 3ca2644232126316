"""Table of a bundle's TensorRT engines: sizes of the plans and the number formats of their layers.

The values come from the manifest, where the build recorded them: a plan cannot be inspected without a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from tmi.runtime.bundle.manifest import Manifest
from tmi.runtime.bundle.tensorrt_records import GraphPrecision, PlanRecord
from tmi.toolkit.cli.listing import Column, Listing

PLANS = (
    Column("engine"),
    Column("graph"),
    Column("plan", right=True, drop=3),
    Column("precision"),
    Column("layers in INT8", right=True, drop=4),
    Column("layers in HALF", right=True, drop=2),
    Column("in FLOAT", right=True, drop=1),
    Column("kept in FLOAT, and why", wrap=True),
)
INT8 = 4
"""Position of the column of INT8 layers, which a bundle without such a plan does not have."""


def plans_table(manifest: Manifest) -> Listing | None:
    """One row for each plan; None if the bundle has no TensorRT metadata."""
    record = manifest.tensorrt
    if record is None:
        return None
    rows: list[tuple[str, ...]] = []
    precisions = {} if record.precision is None else record.precision.graphs
    for kind, plans in record.plans.items():
        for name, plan in plans.graphs.items():
            size = f"{plan.plan.bytes / 1e6:.1f} MB"
            layers = (plan.layers_in_int8, plan.layers_in_half, plan.layers_in_float)
            counts = ("-" if count is None else str(count) for count in layers)
            precision = precisions[name].precision if name in precisions else "?"
            rows.append(
                (kind, name, size, precision, *counts, _reasons(plan) or _reasons_of_graph(precisions.get(name)))
            )
    for kind, missing in record.pending.items():
        rows.append((kind, "all", "-", "-", "-", "-", "-", f"still to be built with `tmi build`: {missing}"))
    columns: Sequence[Column] = PLANS
    if not any(plan.layers_in_int8 for plans in record.plans.values() for plan in plans.graphs.values()):
        columns, rows = PLANS[:INT8] + PLANS[INT8 + 1 :], [row[:INT8] + row[INT8 + 1 :] for row in rows]
    return Listing(columns=columns, rows=rows, keys=2)


def emulation_lines(manifest: Manifest) -> Iterator[str]:
    """One line for each graph: largest FP16 magnitude on golden inputs and real cases, and its share of the range."""
    for name, record in ({} if manifest.tensorrt is None else manifest.tensorrt.emulation).items():
        if record.at is not None:
            yield (
                f"{name}: {record.tensors} FP16 tensors, the largest magnitude {record.largest:.4g} "
                f"({record.share_of_fp16_range:.0%} of the range) at {record.at.node} ({record.at.operator})"
            )


def _reasons_of_graph(graph: GraphPrecision | None) -> str:
    """Number of nodes of an INT8 graph that stay in float32: each has a reason of its own, which `--json` lists."""
    if graph is None or graph.nodes_in_int8 is None or not graph.nodes_in_float:
        return ""
    return f"{len(graph.nodes_in_float)} whose error in INT8 is beyond the budget"


def _reasons(plan: PlanRecord) -> str:
    """Each distinct reason with the number of nodes that it keeps in float32."""
    counts = Counter(node.why for node in plan.float_nodes.values())
    return "; ".join(f"{count} {why}" for why, count in counts.most_common())
