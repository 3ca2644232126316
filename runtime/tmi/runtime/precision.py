"""Which number format an engine computes in; for plans, as the bundle's manifest says."""

from __future__ import annotations

from tmi.runtime.engine import engine_spec
from tmi.toolkit.errors import DamagedError
from tmi.toolkit.manifest import Manifest

FLOAT32, TF32, FLOAT16 = "float32", "tf32", "float16"
LADDER = (FLOAT32, TF32, FLOAT16)
"""From the most exact to the coarsest; the keys of `tmi.runtime.parity.BOUNDS`."""
TENSORRT = "tensorrt"
"""Key of `Manifest.extra` that holds all of TensorRT's metadata."""


def graph_precisions(manifest: Manifest) -> dict[str, str]:
    """Graph -> its precision in TensorRT plans.

    Raises:
        DamagedError: the manifest does not say.
    """
    try:
        said = manifest.extra[TENSORRT]["precision"]["graphs"]
        return {g.name: LADDER[LADDER.index(said[g.name]["precision"])] for g in manifest.graphs}
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(
            "bundle: the manifest does not say in which precision its plans compute", fix="export the bundle again"
        ) from error


def plan_precision(manifest: Manifest) -> str:
    """The coarsest precision among the graphs: what bounds the whole pipeline.

    Raises:
        DamagedError: the manifest does not say.
    """
    return max(graph_precisions(manifest).values(), key=LADDER.index)


def engine_precision(engine: str, manifest: Manifest) -> str:
    """What an engine computes a bundle's graphs in: float32, but for engines that run plans.

    Raises:
        DamagedError: it runs plans and the manifest does not say what those compute in.
    """
    return plan_precision(manifest) if engine_spec(engine).gpu else FLOAT32
