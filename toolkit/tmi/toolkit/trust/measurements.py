"""What is measured of a case to tell whether it is like the training cases. N cases, D numbers of a part.

Each modality has parts, and each part is one vector per case::

    image.encoder        features of the fold's CT encoder
    image.volume         statistics of the prepared CT [0, 1] and its grid (`volume_statistics`)
    clinical.encoder     features of the fold's text encoder
    clinical.values      numbers of the record, sign(x) log(1 + |x|), NaN where missing
    clinical.missing     share of the schema's fields that are missing
    clinical.pattern     1 for each field that is missing, else 0
    radiomics.features   features scaled by the fold's scaler
    radiomics.clipped    share of the features outside the range of the fold's training cases

A logarithm makes a value in another unit a shift that does not depend on its size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

VOLUME_NAMES = (
    *("mean", "deviation", "share_low", "share_high", "quartile_1", "median", "quartile_3"),
    *(f"{what}_{axis}" for what in ("noise", "asymmetry", "voxels", "mm") for axis in "DHW"),
)
"""Names of the numbers of `volume_statistics`."""
MONITORED_RADIOMICS = ("original_shape", "original_firstorder")
"""Radiomic features that are monitored for drift start with one of these: size and shape of the liver, and its HU."""
GEOMETRY_SIZE = 6
"""Numbers of a grid: voxels along D, H, W, and their sizes in mm."""
SAMPLES = 64
"""Largest number of voxels that is sampled along each axis; keeps the cost far below that of reading the CT."""
EDGE = 1e-6
"""Distance from the ends of the window at which a voxel counts as clipped by it."""


def volume_statistics(
    ct_1DHW: Float[np.ndarray, "1 D H W"], geometry_G: Float[np.ndarray, "G"] | None
) -> Float[NDArray[np.float64], "S"]:
    """Statistics of a prepared CT: intensities, noise, symmetry, and logarithms of its grid.

    Args:
        ct_1DHW: windowed, scaled and resampled CT.
        geometry_G: voxels along D, H, W and their sizes in mm, of the file; None: unknown.

    Returns:
        Mean, standard deviation, share at each end of the window, three quantiles, differences of neighbours along
        each axis (noise and sharpness), differences between opposite halves along each axis (orientation), and the
        logarithms of `geometry_G`; NaN where it is not known.
    """
    ct_DHW = ct_1DHW[0]
    steps = [max(1, -(-size // SAMPLES)) for size in ct_DHW.shape]
    sampled = tuple(slice(None, None, step) for step in steps)
    values = ct_DHW[sampled].astype(np.float64)
    low, high = float(values.min()), float(values.max())
    numbers = [
        float(values.mean()),
        float(values.std()),
        float((values <= low + EDGE).mean()),
        float((values >= high - EDGE).mean()),
        *(float(q) for q in np.quantile(values, (0.25, 0.5, 0.75))),
    ]
    for axis, size in enumerate(ct_DHW.shape):
        first, second = list(sampled), list(sampled)
        first[axis], second[axis] = slice(0, max(size - 1, 0), steps[axis]), slice(1, None, steps[axis])
        difference = ct_DHW[tuple(second)].astype(np.float64) - ct_DHW[tuple(first)]
        numbers.append(float(np.abs(difference).mean()) if difference.size else 0.0)
    for axis, size in enumerate(values.shape):
        half = max(1, size // 2)
        halves = np.split(values, [half], axis=axis)
        numbers.append(float(halves[0].mean() - halves[1].mean()) if halves[1].size else 0.0)
    grid_G = np.full(GEOMETRY_SIZE, np.nan) if geometry_G is None else np.asarray(geometry_G, np.float64)
    return np.concatenate([np.asarray(numbers), np.log(grid_G)])


def case_parts(
    *,
    ct_features_NC: Float[np.ndarray, "N C"] | None = None,
    volume_NS: Float[np.ndarray, "N S"] | None = None,
    text_features_NC: Float[np.ndarray, "N C"] | None = None,
    numbers_NV: Float[np.ndarray, "N V"] | None = None,
    radiomics_NR: Float[np.ndarray, "N R"] | None = None,
    clipped_NR: Bool[np.ndarray, "N R"] | None = None,
) -> dict[str, Float[NDArray[np.float64], "N D"]]:
    """The parts of some cases that are known; the argument names say from what. Unused modalities have no part."""
    parts: dict[str, NDArray[np.float64]] = {}
    if ct_features_NC is not None:
        parts["image.encoder"] = ct_features_NC.astype(np.float64)
    if volume_NS is not None:
        parts["image.volume"] = volume_NS.astype(np.float64)
    if text_features_NC is not None:
        parts["clinical.encoder"] = text_features_NC.astype(np.float64)
    if numbers_NV is not None:
        parts["clinical.values"] = np.sign(numbers_NV) * np.log1p(np.abs(numbers_NV))
        parts["clinical.missing"] = np.isnan(numbers_NV).mean(axis=1, keepdims=True)
        parts["clinical.pattern"] = np.isnan(numbers_NV).astype(np.float64)
    if radiomics_NR is not None:
        parts["radiomics.features"] = radiomics_NR.astype(np.float64)
    if clipped_NR is not None:
        parts["radiomics.clipped"] = clipped_NR.mean(axis=1, keepdims=True, dtype=np.float64)
    return parts


def monitored_numbers(
    *,
    volume_NS: Float[np.ndarray, "N S"] | None = None,
    numbers_NV: Float[np.ndarray, "N V"] | None = None,
    fields: Sequence[str] = (),
    radiomics_NF: Float[np.ndarray, "N F"] | None = None,
    features: Sequence[str] = (),
) -> dict[str, Float[NDArray[np.float64], "N"]]:
    """Numbers of some cases that are monitored for drift, by name; NaN where missing.

    Args:
        volume_NS: statistics of the prepared CTs.
        numbers_NV: values of the records.
        fields: names of the fields.
        radiomics_NF: unscaled features.
        features: their names.
    """
    found: dict[str, NDArray[np.float64]] = {}
    if volume_NS is not None:
        found |= {f"image.{name}": volume_NS[:, i] for i, name in enumerate(VOLUME_NAMES)}
    if numbers_NV is not None:
        found |= {f"clinical.{name}": numbers_NV[:, i] for i, name in enumerate(fields)}
        found["clinical.missing"] = np.isnan(numbers_NV).mean(axis=1)
    if radiomics_NF is not None:
        chosen = [i for i, name in enumerate(features) if name.startswith(MONITORED_RADIOMICS)]
        found |= {f"radiomics.{features[i]}": radiomics_NF[:, i] for i in chosen}
    return {name: np.asarray(values, np.float64) for name, values in found.items()}
