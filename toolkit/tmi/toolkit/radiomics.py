"""Radiomics of a CT and its mask through pyradiomics: exactly 1,781 features in one fixed order.

The features are those of van Griethuysen 2017 (doi:10.1158/0008-5472.CAN-17-0339) under the settings in
`tmi.toolkit.radiomics_settings`, computed on the canonical RAS+ grid without resampling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from tmi.toolkit.errors import InputRefusedError
from tmi.toolkit.radiomics_names import FEATURE_NAMES
from tmi.toolkit.radiomics_package import load, plain_extractor, quiet
from tmi.toolkit.radiomics_settings import SETTINGS, SETTINGS_DIGEST
from tmi.toolkit.radiomics_table import missing_features, read_table, write_table

if TYPE_CHECKING:
    from tmi.toolkit.volume import Volume

__all__ = [
    "FEATURE_NAMES",
    "SETTINGS",
    "SETTINGS_DIGEST",
    "extract",
    "extract_plain",
    "missing_features",
    "read_table",
    "write_table",
]


def extract(ct: Volume, mask: Volume, *, jobs: int = 1) -> Float[NDArray[np.float64], "1781"]:
    """The features in the order of `FEATURE_NAMES`; NaN where one has no finite value.

    Args:
        ct: Hounsfield units.
        mask: bool, on the CT's grid.
        jobs: processes to spread the image types over.

    Raises:
        UnavailableError: pyradiomics is not installed.
        InputRefusedError: `radiomics-mask`: the mask is empty, a single voxel or a line.
    """
    return extract_plain(ct, mask)


def extract_plain(ct: Volume, mask: Volume) -> Float[NDArray[np.float64], "1781"]:
    """The same by one plain call of pyradiomics: the reference that `extract` is held to.

    Args:
        ct: as in `extract`.
        mask: as in `extract`.

    Raises:
        UnavailableError: as in `extract`.
        InputRefusedError: as in `extract`.
    """
    load()
    require_region(mask)
    image, region = to_image(ct.array_DHW, ct.spacing_DHW_mm), to_image(mask.array_DHW, ct.spacing_DHW_mm)
    with quiet():
        answer = plain_extractor().execute(image, region)
    return ordered(answer)


def require_region(mask: Volume) -> None:
    """Refuse a mask that spans fewer than two axes.

    Raises:
        InputRefusedError: `radiomics-mask`.
    """
    wide = (
        sum(np.ptp(np.flatnonzero(mask.array_DHW.any(axis=other))) > 0 for other in ((1, 2), (0, 2), (0, 1)))
        if (mask.array_DHW.any())
        else 0
    )
    if wide < SETTINGS["setting"]["minimumROIDimensions"]:
        raise InputRefusedError(
            "the mask is too small for radiomics: it is empty, one voxel or one line of voxels",
            fix="segment the liver, or name its label with --mask-label",
            code="radiomics-mask",
        )


def to_image(array_DHW: NDArray[np.generic], spacing_DHW_mm: tuple[float, float, float]) -> Any:
    """An array as a SimpleITK image of the same spacing; bool becomes uint8."""
    import SimpleITK

    image = SimpleITK.GetImageFromArray(array_DHW.astype(np.uint8) if array_DHW.dtype == np.bool_ else array_DHW)
    image.SetSpacing([float(s) for s in spacing_DHW_mm[::-1]])
    return image


def ordered(answer: Mapping[str, Any]) -> Float[NDArray[np.float64], "1781"]:
    """Named values in the order of `FEATURE_NAMES`: complex ones cast to real, absent or non-finite ones to NaN."""
    values_F = np.array([np.real(np.asarray(answer.get(name, np.nan))).item() for name in FEATURE_NAMES])
    return np.where(np.isfinite(values_F), values_F, np.nan).astype(np.float64)
