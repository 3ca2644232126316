"""Triple-modal feature fusion loss (TMFF), equation (5) of the paper.

L = lambda (SDM_image,text + SDM_radiomics,text) / 2 + (1 - lambda) SDM_image,radiomics
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from tmi.toolkit.config.schema import LossConfig
from tmi.training.losses.sdm import sdm


def tmff(
    clinical_BC: Float[Tensor, "B C"],
    radiomics_BC: Float[Tensor, "B C"],
    image_BC: Float[Tensor, "B C"],
    ids_B: Int[Tensor, " B"],
    config: LossConfig,
) -> Float[Tensor, ""]:
    """Alignment loss of one batch as a scalar; `ids_B` are the class labels."""
    scale, weight = config.sdm_scale, config.tmff_lambda
    with_text = sdm(image_BC, clinical_BC, ids_B, scale=scale) + sdm(radiomics_BC, clinical_BC, ids_B, scale=scale)
    return weight * with_text / 2 + (1 - weight) * sdm(image_BC, radiomics_BC, ids_B, scale=scale)
