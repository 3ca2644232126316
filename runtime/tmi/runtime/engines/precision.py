"""Number format in which an engine computes. For TensorRT plans the bundle's manifest records it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from tmi.runtime.bundle.manifest import Manifest
from tmi.runtime.bundle.tensorrt_records import GraphPrecision
from tmi.runtime.engines.registry import INT8_MAX_ABS_ERR, engine_spec
from tmi.toolkit.errors import DamagedError, UsageError

FLOAT32: Final = "float32"
TF32: Final = "tf32"
FLOAT16: Final = "float16"
BFLOAT16: Final = "bfloat16"
INT8: Final = "int8"
ALLOWED_PRECISIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"auto": (), "bf16": (BFLOAT16,), "fp32": (FLOAT32,), "int8": (INT8,)},
)
"""Value of `--precision` -> number formats that an engine may use; empty: any."""
PRECISION_ORDER = (FLOAT32, TF32, FLOAT16, INT8)
"""Number formats of plans, from the most to the least exact."""


def graph_precisions(manifest: Manifest) -> dict[str, str]:
    """Graph -> its precision in TensorRT plans.

    Raises:
        DamagedError: the manifest does not record it.
    """
    return {name: record.precision for name, record in graph_precision_records(manifest).items()}


def graph_precision_records(manifest: Manifest) -> dict[str, GraphPrecision]:
    """Graph -> what the manifest records of its precision in TensorRT plans.

    Raises:
        DamagedError: it records nothing of a graph.
    """
    record = None if manifest.tensorrt is None else manifest.tensorrt.precision
    if record is None or not {g.name for g in manifest.graphs} <= set(record.graphs):
        raise DamagedError(
            "bundle: the manifest does not record the precision of its plans", fix="export the bundle again"
        )
    return {g.name: record.graphs[g.name] for g in manifest.graphs}


def plan_precision(manifest: Manifest) -> str:
    """The least exact precision among the graphs, which bounds the complete pipeline.

    Raises:
        DamagedError: the manifest does not record it.
    """
    return max(graph_precisions(manifest).values(), key=PRECISION_ORDER.index)


def engine_precision(engine: str, manifest: Manifest) -> str:
    """Number format in which an engine computes a bundle's graphs.

    The engine table defines it, and the manifest for TensorRT plans and typed graphs.

    Raises:
        DamagedError: the manifest does not record the precision of its plans or typed graphs.
    """
    precision = engine_spec(engine).precision
    return plan_precision(manifest) if precision is None else precision


def largest_error(engine: str, precision: str) -> float:
    """Declared bound on |probability - eager float32 probability| of an engine that computes in a number format.

    The engine table defines it; plans and typed graphs in INT8 have that of the INT8 engines.
    """
    declared = engine_spec(engine).max_abs_err
    return max(declared, INT8_MAX_ABS_ERR) if precision == INT8 else declared


def allowed_precisions(precision: str) -> tuple[str, ...]:
    """Number formats that a value of `--precision` allows; empty: any.

    Raises:
        UsageError: no such value.
    """
    if precision not in ALLOWED_PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}", fix=f"choose one of {', '.join(ALLOWED_PRECISIONS)}")
    return ALLOWED_PRECISIONS[precision]


def validated_at_export(manifest: Manifest, engine: str) -> bool:
    """Whether an engine passed the export's parity checks; the manifest holds records of passed engines only."""
    return any(r.engine == engine for r in manifest.parity)


def rejected_at_export(manifest: Manifest, engine: str) -> str | None:
    """Reason why the export's parity checks rejected an engine; None if they did not."""
    reason = manifest.engines_rejected.get(engine)
    return None if reason is None else f"rejected at the export: {reason}"
