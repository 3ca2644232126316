"""What a bundle's manifest says of its TensorRT engines, as a table: sizes, and which types their layers compute in.

Of a plan nothing can be read without a GPU; all of this was written down while it was built.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from tmi.runtime.bundle.manifest import Manifest
from tmi.runtime.engines.precision import TENSORRT


def plans_table(manifest: Manifest) -> Table | None:
    """One row a plan; None where the bundle says nothing of TensorRT."""
    said: Mapping[str, Any] = manifest.extra.get(TENSORRT, {})
    if not said:
        return None
    table = Table()
    for column in (
        "engine",
        "graph",
        "plan",
        "precision",
        "layers in HALF",
        "in FLOAT",
        "what stayed in FLOAT, and why",
    ):
        right = column in ("plan", "layers in HALF", "in FLOAT")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    precisions = said.get("precision", {}).get("graphs", {})
    for kind, about in said.get("plans", {}).items():
        for name, plan in about["graphs"].items():
            size = f"{plan['plan']['bytes'] / 1e6:.1f} MB"
            counts = ("-" if plan[key] is None else str(plan[key]) for key in ("layers_in_half", "layers_in_float"))
            table.add_row(kind, name, size, precisions.get(name, {}).get("precision", "?"), *counts, _reasons(plan))
    for kind, missing in said.get("pending", {}).items():
        table.add_row(kind, "all", "-", "-", "-", "-", f"still to be built with `tmi build`: {missing}")
    return table


def emulation_lines(manifest: Manifest) -> Iterator[str]:
    """A line a graph: how near its FP16 tensors came to the end of the range on the golden inputs and real cases."""
    for name, reached in manifest.extra.get(TENSORRT, {}).get("emulation", {}).items():
        if "at" in reached:
            at = reached["at"]
            yield (
                f"{name}: {reached['tensors']} FP16 tensors, the largest magnitude {reached['largest']:.4g} "
                f"({reached['share_of_fp16_range']:.0%} of the range) at {at['node']} ({at['operator']})"
            )


def _reasons(plan: Mapping[str, Any]) -> str:
    """The same reason once, with the number of nodes that it keeps in float32."""
    counts = Counter(str(node["why"]) for node in plan.get("float_nodes", {}).values())
    return "; ".join(f"{count} {why}" for why, count in counts.most_common())
