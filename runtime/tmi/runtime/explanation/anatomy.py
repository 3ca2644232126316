"""CT, body mask and liver mask of a case on the CT's canonical grid, and localization of maps on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from tmi.runtime.explanation.localization import LocalizationMetrics, body_mask, centre, localization_metrics
from tmi.toolkit.cases.case import Case
from tmi.toolkit.config.schema import CtConfig
from tmi.toolkit.imaging.ct_resampling import resample_to_ct_grid
from tmi.toolkit.imaging.volume import Volume, read_ct, read_mask


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """The patient's volume, independent of any model."""

    ct: Volume
    """CT in HU."""
    body_DHW: Bool[np.ndarray, "D H W"]
    """Body mask, without table and surrounding air."""
    liver_DHW: Bool[np.ndarray, "D H W"] | None
    """Liver mask; None if the case has none."""
    centre_DHW: tuple[int, int, int]
    """Voxel at the centre of the liver, or of the body without a liver mask."""

    def to_ct_grid(self, map_DHW: Float[np.ndarray, "D H W"], config: CtConfig) -> Float[np.ndarray, "D H W"]:
        """Resample a map from the network's input grid to this grid."""
        depth, height, width = self.ct.array_DHW.shape
        return resample_to_ct_grid(map_DHW, (depth, height, width), config)

    def localization_metrics(self, map_DHW: Float[np.ndarray, "D H W"]) -> LocalizationMetrics:
        """Localization metrics of a map on this grid."""
        return localization_metrics(map_DHW, self.body_DHW, self.liver_DHW)


def read_anatomy(case: Case) -> Anatomy:
    """Read the CT and, if present, the liver mask.

    Raises:
        InputRejectedError: as `read_ct` and `read_mask`.
    """
    ct = read_ct(case)
    liver_DHW = read_mask(case, ct).array_DHW.astype(bool, copy=False) if case.has_mask else None
    body_DHW = body_mask(ct.array_DHW)
    return Anatomy(
        ct=ct,
        body_DHW=body_DHW,
        liver_DHW=liver_DHW,
        centre_DHW=centre(body_DHW if liver_DHW is None else liver_DHW),
    )
