"""Table of a bundle's TensorRT engines: sizes of the plans and the number formats of their layers.

The values come from the manifest, where the build recorded them: a plan cannot be inspected without a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from tmi.runtime.bundle.manifest import Manifest
from tmi.runtime.engines.precision import TENSORRT
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
    metadata: Mapping[str, Any] = manifest.extra.get(TENSORRT, {})
    if not metadata:
        return None
    rows: list[tuple[str, ...]] = []
    precisions = metadata.get("precision", {}).get("graphs", {})
    for kind, record in metadata.get("plans", {}).items():
        for name, plan in record["graphs"].items():
            size = f"{plan['plan']['bytes'] / 1e6:.1f} MB"
            counts = ("-" if plan[key] is None else str(plan[key]) for key in ("layers_in_half", "layers_in_float"))
            rows.append((kind, name, size, precisions.get(name, {}).get("precision", "?"), *counts, _reasons(plan)))
    for kind, missing in metadata.get("pending", {}).items():
        rows.append((kind, "all", "-", "-", "-", "-", f"still to be built with `tmi build`: {missing}"))
    return Listing(columns=PLANS, rows=rows, keys=2)


def emulation_lines(manifest: Manifest) -> Iterator[str]:
    """One line for each graph: largest FP16 magnitude on golden inputs and real cases, and its share of the range."""
    for name, record in manifest.extra.get(TENSORRT, {}).get("emulation", {}).items():
        if "at" in record:
            at = record["at"]
            yield (
                f"{name}: {record['tensors']} FP16 tensors, the largest magnitude {record['largest']:.4g} "
                f"({record['share_of_fp16_range']:.0%} of the range) at {at['node']} ({at['operator']})"
            )


def _reasons(plan: Mapping[str, Any]) -> str:
    """Each distinct reason with the number of nodes that it keeps in float32."""
    counts = Counter(str(node["why"]) for node in plan.get("float_nodes", {}).values())
    return "; ".join(f"{count} {why}" for why, count in counts.most_common())
