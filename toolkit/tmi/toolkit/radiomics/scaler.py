"""Scale radiomic features with parameters fitted on one set of cases. N cases, F features.

    minmax:  v = 2 (x - min) / (max - min) - 1, clipped to [-1, 1]
    zscore:  v = (x - mean) / std, not clipped

A missing value (NaN) becomes 0 after scaling, which imputes the middle of the range or the mean. A feature that was
constant or entirely missing in the fitted cases is always 0.
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
"""Schema id of a saved scaler."""
FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """Scaled features, with the positions of imputed and clipped values."""

    values_NF: Float[np.ndarray, "N F"]
    """Scaled values, float32, finite."""
    imputed_NF: Bool[np.ndarray, "N F"]
    """True where a value was missing and replaced by 0."""
    clipped_NF: Bool[np.ndarray, "N F"]
    """True where a value was outside the fitted range and clipped."""


@dataclass(frozen=True, kw_only=True)
class RadiomicsScaler:
    """A fitted scaler: v = (x - centre) / half_width for each feature."""

    scaling: Literal["minmax", "zscore"]
    """Scaling method."""
    centre_F: Float[np.ndarray, " F"]
    """Middle of the range (minmax) or mean (zscore); float64."""
    half_width_F: Float[np.ndarray, " F"]
    """Half the range (minmax) or population standard deviation (zscore); 0 marks a feature that is always 0."""
    fitted_on: int
    """Number of fitted cases."""

    @classmethod
    def fit(cls, values_NF: Float[np.ndarray, "N F"], config: RadiomicsConfig) -> Self:
        """Fit a scaler.

        Args:
            values_NF: features of the training cases; NaN marks a missing value.
            config: scaling method.
        """
        present = np.isfinite(values_NF)
        observed = present.any(axis=0)
        if config.scaling == "minmax":
            low = np.where(observed, np.where(present, values_NF, np.inf).min(axis=0), 0.0)
            high = np.where(observed, np.where(present, values_NF, -np.inf).max(axis=0), 0.0)
            # halve before adding: low + high and high - low can overflow at the ends of the float range
            centre, half_width = low / 2 + high / 2, high / 2 - low / 2
        else:
            count = np.maximum(present.sum(axis=0), 1)
            # divide by the largest magnitude first: the square of a large value can overflow
            unit = np.maximum(np.where(present, np.abs(values_NF), 0.0).max(axis=0), np.finfo(np.float64).tiny)
            relative = np.where(present, values_NF, 0.0) / unit
            mean = relative.sum(axis=0) / count
            std = np.sqrt(np.where(present, (relative - mean) ** 2, 0.0).sum(axis=0) / count)
            centre, half_width = mean * unit, std * unit
        # a width at rounding level belongs to a constant feature; dividing by it would amplify noise
        varies = observed & (half_width > 1e-12 * np.maximum(np.abs(centre), 1e-30))
        return cls(
            scaling=config.scaling,
            centre_F=np.where(varies, centre, 0.0),
            half_width_F=np.where(varies, half_width, 0.0),
            fitted_on=int(values_NF.shape[0]),
        )

    def transform(self, values_NF: Float[np.ndarray, "N F"]) -> Scaled:
        """Scale features of any cases; NaN marks a missing value."""
        missing = ~np.isfinite(values_NF)
        varies = self.half_width_F > 0
        with np.errstate(over="ignore"):  # an overflow is clipped below, to the fitted range or to that of float32
            scaled = np.divide(
                np.where(missing, self.centre_F, values_NF) - self.centre_F,
                self.half_width_F,
                out=np.zeros(values_NF.shape, dtype=np.float64),
                where=varies,
            )
        clipped = np.zeros(values_NF.shape, dtype=bool)
        if self.scaling == "minmax":
            # the margin keeps fitted extremes, which rounding may move beyond 1, from being marked as clipped
            clipped = np.abs(scaled) > 1.0 + 1e-9
            scaled = np.clip(scaled, -1.0, 1.0)
        else:
            scaled = np.clip(scaled, -FLOAT32_MAX, FLOAT32_MAX)
        return Scaled(values_NF=scaled.astype(np.float32), imputed_NF=missing, clipped_NF=clipped)

    def save(self, path: Path) -> None:
        """Write the scaler as JSON; floats are written so that they parse to the same bits."""
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
    def load(cls, path: Path, *, data: bytes | None = None) -> Self:
        """Read a saved scaler.

        Args:
            path: its file.
            data: content of the file, if the caller has read it; the file is then not opened.

        Raises:
            DamagedError: the file is missing, malformed, or of another schema.
        """
        document = read_json(path, kind="scaler", data=data)
        try:
            if document["schema"] != SCHEMA or document["scaling"] not in ("minmax", "zscore"):
                raise ValueError(document["schema"])
            centre = np.asarray(document["centre"], dtype=np.float64)
            half_width = np.asarray(document["half_width"], dtype=np.float64)
            if centre.ndim != 1 or centre.shape != half_width.shape or not np.isfinite([centre, half_width]).all():
                raise ValueError("shape")
            return cls(
                scaling=document["scaling"],
                centre_F=centre,
                half_width_F=half_width,
                fitted_on=int(document["fitted_on"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError(f"scaler {path} is malformed", fix="restore the run or bundle it is from") from error
