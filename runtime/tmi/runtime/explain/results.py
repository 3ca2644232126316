"""What an explanation is: frozen records, and their JSON form `tmi-explanation/1`. Needs no torch.

Names of features and fields, attributions and figures; no value of a patient and nothing of a report's text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64
from numpy.typing import NDArray

SCHEMA = "tmi-explanation/1"
REPORT_FIELD = "report"
"""Under this name stand the attributions of a free-text report, which is no field of a schema."""


@dataclass(frozen=True, kw_only=True)
class FoldExplanation:
    """What one fold's model says and why."""

    fold: int
    """Number of the fold."""
    probability: Mapping[str, float]
    """Class name -> probability."""
    map_DHW: Float[np.ndarray, "D H W"]
    """XGrad-CAM on the network's input grid, [0, 1]."""
    radiomics_R: Float64[NDArray[np.float64], "1781"]
    """Integrated gradients of the scaled features."""
    fields: Mapping[str, float | None]
    """Field -> integrated gradients of its sentence; None where the text was cut before it."""
    completeness: Mapping[str, Mapping[str, float]]
    """`radiomics`, `clinical` -> output, baseline, error, steps of the integration."""
    attention: tuple[Any, ...]
    """`tcaf_attention.RingAttention`s; empty without TCAF."""


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What a model looked at in one case: one fold, or the mean over folds."""

    case_id: str
    """Which case."""
    target: str
    """Class whose logit the map explains."""
    decision: str
    """Class that the folds explained here decide for."""
    probability: Mapping[str, float]
    """Class name -> probability, the mean over the folds explained."""
    folds: tuple[FoldExplanation, ...]
    """Each fold by itself."""
    map_DHW: Float[np.ndarray, "D H W"]
    """Mean of the folds' maps, scaled to [0, 1], on the network's input grid."""
    radiomics_R: Float64[NDArray[np.float64], "1781"]
    """Mean over the folds."""
    fields: Mapping[str, float | None]
    """Mean over the folds that read the field."""
    seconds: Mapping[str, float]
    """Time spent, by stage."""


def mean_fields(folds: tuple[FoldExplanation, ...]) -> dict[str, float | None]:
    """Mean over the folds that read a field; None where none did."""
    names = dict.fromkeys(name for fold in folds for name in fold.fields)
    means: dict[str, float | None] = {}
    for name in names:
        read = [v for fold in folds if (v := fold.fields.get(name)) is not None]
        means[name] = sum(read) / len(read) if read else None
    return means


def strongest_fields(fields: Mapping[str, float | None], count: int | None = None) -> list[tuple[str, float]]:
    """Fields by the magnitude of their attribution, those not read left out."""
    read = [(name, value) for name, value in fields.items() if value is not None]
    return sorted(read, key=lambda item: (-abs(item[1]), item[0]))[:count]
