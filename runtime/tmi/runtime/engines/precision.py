"""Which number format an engine computes in; for plans, as the bundle's manifest says."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tmi.runtime.bundle.manifest import Manifest
from tmi.runtime.engines.registry import engine_spec
from tmi.toolkit.errors import DamagedError, UsageError

FLOAT32, TF32, FLOAT16, BFLOAT16 = "float32", "tf32", "float16", "bfloat16"
ALLOWED_PRECISIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"auto": (), "bf16": (BFLOAT16,), "fp32": (FLOAT32,)},
)
"""Value of `--precision` -> what an engine may compute in; nothing: whatever has passed its gates."""
PRECISION_ORDER = (FLOAT32, TF32, FLOAT16)
"""What plans compute in, from the most exact to the coarsest."""
TENSORRT = "tensorrt"
"""Key of `Manifest.extra` that holds all of TensorRT's metadata."""
ENGINES_REJECTED = "engines_refused"
"""Key of `Manifest.extra`: engine that yields -> why the export's gates refused it."""


def graph_precisions(manifest: Manifest) -> dict[str, str]:
    """Graph -> its precision in TensorRT plans.

    Raises:
        DamagedError: the manifest does not say.
    """
    try:
        said = manifest.extra[TENSORRT]["precision"]["graphs"]
        return {g.name: PRECISION_ORDER[PRECISION_ORDER.index(said[g.name]["precision"])] for g in manifest.graphs}
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(
            "bundle: the manifest does not say in which precision its plans compute", fix="export the bundle again"
        ) from error


def plan_precision(manifest: Manifest) -> str:
    """The coarsest precision among the graphs: what bounds the whole pipeline.

    Raises:
        DamagedError: the manifest does not say.
    """
    return max(graph_precisions(manifest).values(), key=PRECISION_ORDER.index)


def engine_precision(engine: str, manifest: Manifest) -> str:
    """What an engine computes a bundle's graphs in: as the table of engines says, and for plans as the bundle says.

    Raises:
        DamagedError: it runs plans and the manifest does not say what those compute in.
    """
    return plan_precision(manifest) if engine_spec(engine).gpu else engine_spec(engine).precision


def allowed_precisions(precision: str) -> tuple[str, ...]:
    """What an engine may compute in, for a value of `--precision`; nothing stands for anything.

    Raises:
        UsageError: no such value.
    """
    if precision not in ALLOWED_PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}", fix=f"choose one of {', '.join(ALLOWED_PRECISIONS)}")
    return ALLOWED_PRECISIONS[precision]


def validated_at_export(manifest: Manifest, engine: str) -> bool:
    """Whether the export put an engine through the gates and it passed: a failure would not be among the evidence."""
    return any(r.engine == engine for r in manifest.parity)


def rejected_at_export(manifest: Manifest, engine: str) -> str | None:
    """Why the export's gates refused an engine; None where they did not."""
    refused = manifest.extra.get(ENGINES_REJECTED)
    reason = refused.get(engine) if isinstance(refused, dict) else None
    return None if reason is None else f"refused at the export: {reason}"
