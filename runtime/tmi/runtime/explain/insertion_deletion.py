"""Insertion and deletion curves: does the answer follow the voxels that the map calls important?

Voxels of the network's input are ranked by the map. Deletion sets the first part of them to the lower end of the CT
window (what air is), insertion starts from a volume of that and puts the first part back. p is the probability of the
explained class, the mean over the folds; radiomics and text stay as they are.

    AUC = integral of p over the part, by the trapezoid rule; a good map has insertion - deletion well above 0

Source: V. Petsiuk et al. 2018. Both curves share their ends, so that `steps` parts take 2 * steps runs of an encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

ProbabilityFunction = Callable[[Float[np.ndarray, "D H W"]], float]
"""A CT on the input grid -> probability of the explained class."""


@dataclass(frozen=True, kw_only=True)
class PerturbationCurves:
    """Both curves and their areas."""

    parts: tuple[float, ...]
    """Parts of the voxels, 0 to 1."""
    deletion: tuple[float, ...]
    """Probability when that part is gone."""
    insertion: tuple[float, ...]
    """Probability when only that part is there."""

    @property
    def deletion_auc(self) -> float:
        """Area under the deletion curve; low is good."""
        return float(np.trapezoid(self.deletion, self.parts))

    @property
    def insertion_auc(self) -> float:
        """Area under the insertion curve; high is good."""
        return float(np.trapezoid(self.insertion, self.parts))


def curves(
    ct_DHW: Float[np.ndarray, "D H W"],
    map_DHW: Float[np.ndarray, "D H W"],
    answer: ProbabilityFunction,
    *,
    steps: int,
    empty: float,
) -> PerturbationCurves:
    """The two curves of one map.

    Args:
        ct_DHW: the network's input.
        map_DHW: on the same grid.
        answer: the model's.
        steps: parts between 0 and 1, at least 1.
        empty: what a voxel that is gone holds.
    """
    order: NDArray[np.intp] = np.argsort(-map_DHW, axis=None, kind="stable")
    parts = tuple(float(p) for p in np.linspace(0.0, 1.0, steps + 1))
    whole, nothing = answer(ct_DHW), answer(np.full_like(ct_DHW, empty))
    deletion, insertion = [whole], [nothing]
    for part in parts[1:-1]:
        first = order[: round(part * order.size)]
        without = ct_DHW.copy()
        without.ravel()[first] = empty
        deletion.append(answer(without))
        alone = np.full_like(ct_DHW, empty)
        alone.ravel()[first] = ct_DHW.ravel()[first]
        insertion.append(answer(alone))
    return PerturbationCurves(parts=parts, deletion=(*deletion, nothing), insertion=(*insertion, whole))
