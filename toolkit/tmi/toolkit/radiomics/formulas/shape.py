"""The 14 shape features of a mask, from its mesh and its voxels."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

from tmi.toolkit.radiomics.formulas.shape_mesh import measure_mesh


def shape_features(
    mask_DHW: Bool[NDArray[np.bool_], "D H W"], spacing_DHW_mm: tuple[float, float, float]
) -> dict[str, Any]:
    """Compute the features by name.

    Axis lengths are 4 times the roots of the eigenvalues of the covariance (divided by N) of the voxel positions in mm.

    Args:
        mask_DHW: the mask, cropped to its bounding box.
        spacing_DHW_mm: voxel size in millimetres along D, H, W.
    """
    mesh = measure_mesh(mask_DHW, spacing_DHW_mm)
    area, volume = mesh.area_mm2, mesh.volume_mm3
    positions_N3 = np.argwhere(mask_DHW)
    least, minor, major = _axis_variances(positions_N3, np.array(spacing_DHW_mm))
    z, y, x = spacing_DHW_mm
    in_slice, in_column, in_row, anywhere = mesh.diameters_mm
    return {
        "Elongation": np.sqrt(minor / major),
        "Flatness": np.sqrt(least / major),
        "LeastAxisLength": np.sqrt(least) * 4,
        "MajorAxisLength": np.sqrt(major) * 4,
        "Maximum2DDiameterColumn": in_column,
        "Maximum2DDiameterRow": in_row,
        "Maximum2DDiameterSlice": in_slice,
        "Maximum3DDiameter": anywhere,
        "MeshVolume": volume,
        "MinorAxisLength": np.sqrt(minor) * 4,
        "Sphericity": (36 * np.pi * volume**2) ** (1.0 / 3.0) / area,
        "SurfaceArea": area,
        "SurfaceVolumeRatio": np.float64(area) / volume,
        "VoxelVolume": len(positions_N3) * (z * x * y),
    }


def _axis_variances(positions_N3: NDArray[Any], spacing_DHW_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the eigenvalues of the covariance in mm2, ascending; NaN where one is negative beyond rounding."""
    # + 1 as in pyradiomics, which pads the mask: the offset cancels in exact arithmetic but not in the last bits
    positions_mm_N3 = (positions_N3 + 1) * spacing_DHW_mm
    positions_mm_N3 -= positions_mm_N3.mean(axis=0)
    positions_mm_N3 /= np.sqrt(len(positions_N3))
    eigenvalues = np.linalg.eigvals(positions_mm_N3.T.copy() @ positions_mm_N3)
    eigenvalues[(eigenvalues < 0) & (eigenvalues > -1e-10)] = 0  # rounding noise of a flat mask
    ordered: NDArray[np.float64] = np.sort(eigenvalues)
    return np.where(ordered < 0, np.nan, ordered)
