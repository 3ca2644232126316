"""Scaling of the radiomic features, fitted on one set of cases and applied to any other. N cases, F features.

minmax:  v = 2 (x - min) / (max - min) - 1, clipped to [-1, 1]        zscore:  v = (x - mean) / std, not clipped

A missing value (NaN) becomes 0 after scaling; a feature that was constant in the fitted set, or missing in all of it,
is always 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from jaxtyping import Bool, Float

from tmi.toolkit.config.schema import RadiomicsConfig
from tmi.toolkit.errors import DamagedError
from tmi.toolkit.storage.atomic_files import read_json, write_json

SCHEMA = "tmi-scaler/1"
FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """Scaled features and what had to be done to get them."""

    values_NF: Float[np.ndarray, "N F"]
    """float32, finite."""
    imputed_NF: Bool[np.ndarray, "N F"]
    """Where a value was missing and 0 was put in its place."""
    clipped_NF: Bool[np.ndarray, "N F"]
    """Where a value lay outside the fitted range and was clipped."""


@dataclass(frozen=True, kw_only=True)
class RadiomicsScaler:
    """A fitted scaler: v = (x - centre) / half_width, per feature."""

    scaling: Literal["minmax", "zscore"]
    """Which of the two."""
    centre_F: Float[np.ndarray, " F"]
    """Middle of the range, or mean; float64."""
    half_width_F: Float[np.ndarray, " F"]
    """Half the range, or standard deviation; 0 marks a feature that is always 0."""
    fitted_on: int
    """Number of cases it was fitted on."""

    @classmethod
    def fit(cls, values_NF: Float[np.ndarray, "N F"], config: RadiomicsConfig) -> Self:
        """Fit on the given cases alone; NaN is a missing value."""
        present = np.isfinite(values_NF)
        seen = present.any(axis=0)
        if config.scaling == "minmax":
            low = np.where(seen, np.where(present, values_NF, np.inf).min(axis=0), 0.0)
            high = np.where(seen, np.where(present, values_NF, -np.inf).max(axis=0), 0.0)
            # halves first: the sum or difference of two finite ends of the float range overflows
            centre, half = low / 2 + high / 2, high / 2 - low / 2
        else:
            count = np.maximum(present.sum(axis=0), 1)
            # in units of the largest value, whose square may overflow
            size = np.maximum(np.where(present, np.abs(values_NF), 0.0).max(axis=0), np.finfo(np.float64).tiny)
            sized = np.where(present, values_NF, 0.0) / size
            mean = sized.sum(axis=0) / count
            std = np.sqrt(np.where(present, (sized - mean) ** 2, 0.0).sum(axis=0) / count)
            centre, half = mean * size, std * size
        usable = seen & (half > 1e-12 * np.maximum(np.abs(centre), 1e-30))
        return cls(
            scaling=config.scaling,
            centre_F=np.where(usable, centre, 0.0),
            half_width_F=np.where(usable, half, 0.0),
            fitted_on=int(values_NF.shape[0]),
        )

    def transform(self, values_NF: Float[np.ndarray, "N F"]) -> Scaled:
        """Scale any cases."""
        missing = ~np.isfinite(values_NF)
        usable = self.half_width_F > 0
        with np.errstate(over="ignore"):  # what overflows is clipped, to the fitted range or to that of float32
            scaled = np.divide(
                np.where(missing, self.centre_F, values_NF) - self.centre_F,
                self.half_width_F,
                out=np.zeros(values_NF.shape, dtype=np.float64),
                where=usable,
            )
        clipped = np.zeros(values_NF.shape, dtype=bool)
        if self.scaling == "minmax":
            clipped = np.abs(scaled) > 1.0 + 1e-9
            scaled = np.clip(scaled, -1.0, 1.0)
        else:
            scaled = np.clip(scaled, -FLOAT32_MAX, FLOAT32_MAX)
        return Scaled(values_NF=scaled.astype(np.float32), imputed_NF=missing, clipped_NF=clipped)

    def save(self, path: Path) -> None:
        """Write as JSON; floats keep every bit."""
        write_json(
            path,
            {
                "schema": SCHEMA,
                "scaling": self.scaling,
                "fitted_on": self.fitted_on,
                "centre": self.centre_F.tolist(),
                "half_width": self.half_width_F.tolist(),
            },
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a saved scaler.

        Raises:
            DamagedError: missing, of another schema, or malformed.
        """
        data = read_json(path, kind="scaler")
        try:
            if data["schema"] != SCHEMA or data["scaling"] not in ("minmax", "zscore"):
                raise ValueError(data["schema"])
            centre = np.asarray(data["centre"], dtype=np.float64)
            half = np.asarray(data["half_width"], dtype=np.float64)
            if centre.ndim != 1 or centre.shape != half.shape or not np.isfinite([centre, half]).all():
                raise ValueError("shape")
            return cls(scaling=data["scaling"], centre_F=centre, half_width_F=half, fitted_on=int(data["fitted_on"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError(f"scaler {path} is malformed", fix="restore the run or bundle it is from") from error
