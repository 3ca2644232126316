"""Table of a bundle's TensorRT engines: sizes of the plans and the number formats of their layers.

The values come from the manifest, where the build recorded them: a plan cannot be inspected without a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tmi.runtime.bundle.manifest import Manifest
from tmi.runtime.bundle.tensorrt_records import PlanRecord
from tmi.toolkit.cli.listing import Column, Listing

PLANS = (
    Column("engine"),
    Column("graph"),
    Column("plan", right=True, drop=3),
    Column("precision"),
    Column("layers in HALF", right=True, drop=2),
    Column("in FLOAT", right=True, drop=1),
    Column("kept in FLOAT, and why", wrap=True),
)


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
            counts = ("-" if count is None else str(count) for count in (plan.layers_in_half, plan.layers_in_float))
            precision = precisions[name].precision if name in precisions else "?"
            rows.append((kind, name, size, precision, *counts, _reasons(plan)))
    for kind, missing in record.pending.items():
        rows.append((kind, "all", "-", "-", "-", "-", f"still to be built with `tmi build`: {missing}"))
    return Listing(columns=PLANS, rows=rows, keys=2)


def emulation_lines(manifest: Manifest) -> Iterator[str]:
    """One line for each graph: largest FP16 magnitude on golden inputs and real cases, and its share of the range."""
    for name, record in ({} if manifest.tensorrt is None else manifest.tensorrt.emulation).items():
        if record.at is not None:
            yield (
                f"{name}: {record.tensors} FP16 tensors, the largest magnitude {record.largest:.4g} "
                f"({record.share_of_fp16_range:.0%} of the range) at {record.at.node} ({record.at.operator})"
            )


def _reasons(plan: PlanRecord) -> str:
    """Each distinct reason with the number of nodes that it keeps in float32."""
    counts = Counter(node.why for node in plan.float_nodes.values())
    return "; ".join(f"{count} {why}" for why, count in counts.most_common())
