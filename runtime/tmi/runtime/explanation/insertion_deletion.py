"""Insertion and deletion curves: whether the prediction depends on the voxels that a map ranks highest.

The voxels of the network's input are ranked by the map. Deletion sets the highest-ranked part of them to the lower end
of the CT window (air). Insertion starts from a volume of that value and restores the highest-ranked part. p is the
probability of the explained class, the mean over the folds; radiomics and text stay fixed.

    AUC = integral of p over the part, by the trapezoidal rule; for a good map insertion AUC >> deletion AUC

Source: V. Petsiuk et al. 2018. Both curves share their end points, so that `steps` parts need 2 * steps encoder runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

ProbabilityFunction = Callable[[Float[np.ndarray, "D H W"]], float]
"""CT on the input grid -> probability of the explained class."""


@dataclass(frozen=True, kw_only=True)
class PerturbationCurves:
    """Both curves and their areas."""

    parts: tuple[float, ...]
    """Fractions of the voxels, 0 to 1."""
    deletion: tuple[float, ...]
    """Probability with that fraction removed."""
    insertion: tuple[float, ...]
    """Probability with only that fraction present."""

    @property
    def deletion_auc(self) -> float:
        """Area under the deletion curve; lower is better."""
        return float(np.trapezoid(self.deletion, self.parts))

    @property
    def insertion_auc(self) -> float:
        """Area under the insertion curve; higher is better."""
        return float(np.trapezoid(self.insertion, self.parts))


def curves(
    ct_DHW: Float[np.ndarray, "D H W"],
    map_DHW: Float[np.ndarray, "D H W"],
    predict: ProbabilityFunction,
    *,
    steps: int,
    empty: float,
) -> PerturbationCurves:
    """Both curves of one map.

    Args:
        ct_DHW: the network's input.
        map_DHW: map on the same grid.
        predict: probability function of the model.
        steps: number of steps between 0 and 1, at least 1.
        empty: value of a removed voxel.
    """
    # Flat voxel indices from the largest map value to the smallest; stable, so that ties keep their order.
    order: NDArray[np.intp] = np.argsort(-map_DHW, axis=None, kind="stable")
    parts = tuple(float(p) for p in np.linspace(0.0, 1.0, steps + 1))
    p_full, p_empty = predict(ct_DHW), predict(np.full_like(ct_DHW, empty))
    deletion, insertion = [p_full], [p_empty]
    for part in parts[1:-1]:
        first = order[: round(part * order.size)]
        removed = ct_DHW.copy()
        removed.ravel()[first] = empty
        deletion.append(predict(removed))
        restored = np.full_like(ct_DHW, empty)
        restored.ravel()[first] = ct_DHW.ravel()[first]
        insertion.append(predict(restored))
    return PerturbationCurves(parts=parts, deletion=(*deletion, p_empty), insertion=(*insertion, p_full))
