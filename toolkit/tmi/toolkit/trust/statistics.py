"""Statistics of what one fold was trained on, and the scores of cases against them. No patient data.

D numbers of a part, K principal directions. z = (x - mean) / scale, 0 where x is missing. The covariance of z is shrunk
(Ledoit and Wolf 2004), and only its K largest directions are kept; all others have one residual variance r::

    d^2   = (1 / D) * (sum_k (v_k . z)^2 / lambda_k + (|z|^2 - sum_k (v_k . z)^2) / r)      Mahalanobis distance
    score = (d - centre) / spread

`centre` and `spread` are the median of d and its distance to the 90th percentile on training cases that were left out
of a fit. The score of a modality is the largest of its parts, the joint score the largest of all. K is at most a
quarter of the number of training cases, so that no direction is one patient's.

A file holds the statistics and, sorted, the scores of the fold's held-out cases, on which p-values are calibrated; the
sorted scores of its inner validation cases by class, from which sets of classes are made
(`tmi.toolkit.trust.conformal`); and the deciles of its inputs and predictions (`tmi.toolkit.trust.drift`). Files of
`tmi-trust/1` lack the last two.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.storage.bounded_files import DOCUMENT_BYTES, read_bytes
from tmi.toolkit.storage.documents import DocumentError, parse_json
from tmi.toolkit.storage.serialization import from_json
from tmi.toolkit.trust.drift import EDGES, Summary

SCHEMA = "tmi-trust/2"
OLD_SCHEMAS = ("tmi-trust/1",)
JOINT = "joint"
"""Name of the joint score among those of the modalities."""
MAX_Z = 1e6
"""Bound of a standardised number, so that no square overflows."""


@dataclass(frozen=True, kw_only=True)
class PartStatistics:
    """Statistics of one part."""

    mean_D: Float[np.ndarray, " D"]
    """Mean of the training cases."""
    scale_D: Float[np.ndarray, " D"]
    """Standard deviation with a floor; infinite where no training case has a value."""
    directions_KD: Float[np.ndarray, "K D"]
    """Unit vectors of the largest variances."""
    variances_K: Float[np.ndarray, " K"]
    """Shrunk variances along them."""
    residual: float
    """Shrunk variance of every other direction."""
    centre: float = 0.0
    """Median distance of training cases that were left out of a fit."""
    spread: float = 1.0
    """Distance from `centre` to their 90th percentile, with a floor."""

    def distances(self, values_ND: Float[np.ndarray, "N D"]) -> Float[NDArray[np.float64], "N"]:
        """Distance d of each case."""
        mean, scale = self.mean_D.astype(np.float64), self.scale_D.astype(np.float64)
        z_ND = (values_ND.astype(np.float64) - mean) / scale
        z_ND = np.clip(np.where(np.isnan(z_ND), 0.0, z_ND), -MAX_Z, MAX_Z)
        along_NK = z_ND @ self.directions_KD.astype(np.float64).T
        squares_N = np.square(z_ND).sum(axis=1)
        rest_N = np.maximum(squares_N - np.square(along_NK).sum(axis=1), 0.0)
        total_N = (np.square(along_NK) / self.variances_K).sum(axis=1) + rest_N / self.residual
        distances: NDArray[np.float64] = np.sqrt(total_N / values_ND.shape[1])
        return distances

    def scores(self, values_ND: Float[np.ndarray, "N D"]) -> Float[NDArray[np.float64], "N"]:
        """Score of each case; larger is stranger."""
        scores: NDArray[np.float64] = (self.distances(values_ND) - self.centre) / self.spread
        return scores


@dataclass(frozen=True, kw_only=True)
class _Header:
    """Metadata of a file."""

    schema: str
    fold: int
    fitted_on: int
    parts: tuple[str, ...]
    monitored: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FoldTrust:
    """Statistics of one fold, and the scores of its held-out cases."""

    fold: int
    """Number of the fold."""
    fitted_on: int
    """Number of training cases."""
    parts: Mapping[str, PartStatistics]
    """Part, `modality.name`, -> its statistics."""
    calibration: Mapping[str, Float[np.ndarray, " n"]]
    """Modality, or `joint`, -> sorted scores of the fold's held-out cases."""
    conformal: Mapping[str, Float[np.ndarray, " n"]] = field(default_factory=dict)
    """Class -> sorted scores of its inner validation cases; empty: sets of classes cannot be made."""
    summary: Summary | None = None
    """Deciles of the monitored inputs of its training cases and predictions of its held-out cases."""

    @property
    def held_out(self) -> int:
        """Number of held-out cases."""
        return len(self.calibration[JOINT])

    def scores(self, parts: Mapping[str, Float[np.ndarray, "N D"]]) -> dict[str, Float[NDArray[np.float64], "N"]]:
        """Score of each case by modality, and the joint score.

        Args:
            parts: measurements of the cases (`case_parts`); those without statistics are ignored.
        """
        by_modality: dict[str, NDArray[np.float64]] = {}
        for name, statistics in self.parts.items():
            if name in parts:
                modality, scores = name.partition(".")[0], statistics.scores(parts[name])
                by_modality[modality] = np.maximum(by_modality.get(modality, scores), scores)
        joint = np.max(np.stack(list(by_modality.values())), axis=0)
        return {**by_modality, JOINT: joint}

    def save(self, path: Path) -> None:
        """Write the file atomically; equal statistics give equal bytes."""
        arrays: dict[str, NDArray[np.generic]] = {}
        for name, part in self.parts.items():
            arrays[f"{name}.mean"] = part.mean_D.astype(np.float32)
            arrays[f"{name}.scale"] = part.scale_D.astype(np.float32)
            arrays[f"{name}.directions"] = np.ascontiguousarray(part.directions_KD, dtype=np.float32)
            arrays[f"{name}.variances"] = part.variances_K.astype(np.float64)
            arrays[f"{name}.numbers"] = np.array([part.residual, part.centre, part.spread])
        for name, scores in self.calibration.items():
            arrays[f"calibration.{name}"] = np.sort(scores.astype(np.float64))
        for name, scores in self.conformal.items():
            arrays[f"conformal.{name}"] = np.sort(scores.astype(np.float64))
        header: dict[str, Any] = {
            "schema": SCHEMA,
            "fold": self.fold,
            "fitted_on": self.fitted_on,
            "parts": list(self.parts),
        }
        if self.summary is not None:
            header["monitored"] = list(self.summary.names)
            arrays["monitored.edges"] = self.summary.edges_SE.astype(np.float64)
            arrays["monitored.shares"] = self.summary.shares_SB.astype(np.float64)
            arrays["monitored.counts"] = self.summary.counts_S.astype(np.int64)
        # one entry: safetensors writes several in an order that changes between processes
        unfinished = path.with_name(f"{path.name}.part")
        unfinished.write_bytes(save(arrays, metadata={"trust": json.dumps(header, sort_keys=True)}))
        os.replace(unfinished, path)

    @classmethod
    def load(cls, path: Path, *, fold: int, data: bytes | None = None) -> Self:
        """Read a file.

        Args:
            path: its path, for messages.
            fold: number of the fold that it must be of.
            data: its content, if the caller has read it.

        Raises:
            DamagedError: it is missing, malformed, or of another fold or schema.
        """
        fix = "restore the run or bundle it is from"
        try:
            content = read_bytes(path, max_bytes=DOCUMENT_BYTES) if data is None else data
            arrays = load(content)  # checks the header, which the next line parses
            header = _header(content)
            parts = {name: _part(arrays, name) for name in header.parts}
            calibration, conformal = _scores(arrays, "calibration."), _scores(arrays, "conformal.")
            found = cls(
                fold=header.fold,
                fitted_on=header.fitted_on,
                parts=parts,
                calibration=calibration,
                conformal=conformal,
                summary=_summary(arrays, header.monitored) if header.monitored else None,
            )
            modalities = {name.partition(".")[0] for name in parts}
            if not parts or {*calibration} != {*modalities, JOINT}:
                raise ValueError("parts")
            if len({scores.shape for scores in calibration.values()}) != 1 or not found.held_out:
                raise ValueError("calibration")
        except (OSError, SafetensorError, DocumentError, UsageError, ValueError, KeyError, TypeError) as error:
            raise DamagedError(f"trust statistics {path} are missing or malformed", fix=fix) from error
        if found.fold != fold:
            raise DamagedError(f"trust statistics {path} are those of fold {found.fold}, not of fold {fold}", fix=fix)
        return found


def _header(content: bytes) -> _Header:
    """The metadata entry of a safetensors file: 8 bytes of length, then JSON.

    Raises:
        ValueError, KeyError, TypeError, UsageError: it is malformed, or of another schema.
    """
    size = int.from_bytes(content[:8], "little")
    header = from_json(_Header, parse_json(parse_json(content[8 : 8 + size])["__metadata__"]["trust"].encode()))
    if header.schema not in (SCHEMA, *OLD_SCHEMAS):
        raise ValueError(header.schema)
    return header


def _scores(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[np.float64]]:
    """Sorted scores by name.

    Raises:
        ValueError: they are not finite or not sorted.
    """
    found = {name.removeprefix(prefix): a for name, a in sorted(arrays.items()) if name.startswith(prefix)}
    if not all(a.ndim == 1 and np.isfinite(a).all() and (np.diff(a) >= 0).all() for a in found.values()):
        raise ValueError(prefix)
    return found


def _summary(arrays: Mapping[str, NDArray[Any]], names: tuple[str, ...]) -> Summary:
    """Summary of the monitored numbers.

    Raises:
        ValueError: shapes or values that no cases give.
    """
    edges, shares, counts = (arrays[f"monitored.{key}"] for key in ("edges", "shares", "counts"))
    size = len(names)
    if edges.shape != (size, EDGES) or shares.shape != (size, EDGES + 2) or counts.shape != (size,):
        raise ValueError("monitored")
    ascending = not np.isnan(edges).any() and (edges[:, 1:] >= edges[:, :-1]).all()
    if not ascending or not (shares >= 0).all() or not np.allclose(shares.sum(axis=1), 1.0) or not (counts > 0).all():
        raise ValueError("monitored")
    return Summary(names=names, edges_SE=edges, shares_SB=shares, counts_S=counts)


def _part(arrays: Mapping[str, NDArray[Any]], name: str) -> PartStatistics:
    """Statistics of one part from its arrays.

    Raises:
        ValueError: shapes or values that no fit gives.
    """
    mean, scale, directions, variances, numbers = (
        arrays[f"{name}.{key}"] for key in ("mean", "scale", "directions", "variances", "numbers")
    )
    size, count = mean.shape[0], variances.shape[0]
    if mean.shape != (size,) or scale.shape != (size,) or directions.shape != (count, size) or numbers.shape != (3,):
        raise ValueError(name)
    residual, centre, spread = (float(n) for n in numbers)
    finite = all(np.isfinite(a).all() for a in (mean, directions, variances, numbers))
    if not finite or not (scale > 0).all() or not (variances > 0).all() or residual <= 0 or spread <= 0:
        raise ValueError(name)
    return PartStatistics(
        mean_D=mean,
        scale_D=scale,
        directions_KD=directions,
        variances_K=variances,
        residual=residual,
        centre=centre,
        spread=spread,
    )
