"""Parameter randomization test: a map that does not change with the model's weights shows the image, not the model.

The weights are randomised in a cascade from the head back to the stem, each step in addition to the previous ones, and
the map is computed again after each step. Rank correlation (Spearman) and structural similarity (SSIM, 3D, window 7)
with the map of the trained weights should fall towards 0. Source: J. Adebayo et al. 2018.

Both are computed on at most `MAX_POSITIONS` positions along each axis. The similarity that remains at the end is that
of any network of this architecture with any weights: bright regions of the CT stay bright in a random first stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from tmi.toolkit.models.tmi_clnet.model import TmiClnet

MAX_POSITIONS = 48
"""Largest size of a compared map along an axis."""
WINDOW = 7
"""Size of the SSIM window."""
SSIM_K = (0.01, 0.03)
"""Constants K1 and K2 of the SSIM, for values in [0, 1]. Z. Wang et al. 2004."""


@dataclass(frozen=True, kw_only=True)
class RandomizationStep:
    """Similarity of the map after one step of the cascade."""

    down_to: str
    """Part that was randomised in this step, in addition to those of the previous steps."""
    rank_correlation: float | None
    """Spearman correlation with the trained map; None if a map is constant."""
    ssim: float
    """SSIM with the trained map."""


def cascade(network: TmiClnet) -> Iterator[tuple[str, list[nn.Module]]]:
    """Steps from the head to the stem: name, and the modules to randomise."""
    fusion, backbone = network.fusion, network.ct_encoder.backbone
    yield "head", [fusion.head]
    interaction = [fusion.projection, fusion.projection_norm, fusion.ima, network.ct_encoder.fc]
    yield "interaction", [*interaction, *([fusion.tcaf] if fusion.tcaf is not None else [])]
    for stage in (4, 3, 2, 1):
        yield f"stage {stage}", [getattr(backbone, f"layer{stage}")]
    yield "stem", [backbone.conv1, backbone.bn1]


def randomization_test(
    network: TmiClnet,
    make_map: Callable[[], Float[np.ndarray, "D H W"]],
    trained_map: Float[np.ndarray, "D H W"],
    *,
    seed: int = 0,
) -> tuple[RandomizationStep, ...]:
    """Randomise the network step by step and compare the maps; its weights are restored afterwards.

    Args:
        network: network of one fold.
        make_map: computes the map with the network's current weights.
        trained_map: map of the trained weights.
        seed: seed of the random weights.
    """
    trained = block_mean(trained_map)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    steps: list[RandomizationStep] = []
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name, modules in cascade(network):
                # Every layer is initialised again as at its construction.
                for part in (m for module in modules for m in module.modules()):
                    if callable(reset := getattr(part, "reset_parameters", None)):
                        reset()
                randomised = block_mean(make_map())
                steps.append(
                    RandomizationStep(
                        down_to=name,
                        rank_correlation=rank_correlation(trained, randomised),
                        ssim=structural_similarity(trained, randomised),
                    )
                )
    finally:
        network.load_state_dict(state)
    return tuple(steps)


def block_mean(values_DHW: Float[np.ndarray, "D H W"]) -> Float[np.ndarray, "d h w"]:
    """Mean over blocks, so that no axis has more than `MAX_POSITIONS` positions; incomplete blocks at the end are
    dropped.
    """
    blocks = [-(-n // MAX_POSITIONS) for n in values_DHW.shape]
    cropped = values_DHW[tuple(slice(0, n // b * b) for n, b in zip(values_DHW.shape, blocks, strict=True))]
    shape = [part for n, b in zip(cropped.shape, blocks, strict=True) for part in (n // b, b)]
    return np.asarray(cropped.reshape(shape).mean(axis=(1, 3, 5), dtype=np.float64))


def rank_correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    """Spearman's rank correlation, ties by their mean rank; None if one of the two is constant."""
    from scipy.stats import rankdata

    ranks = [rankdata(v, axis=None) for v in (one, other)]
    if any(np.ptp(r) == 0 for r in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def structural_similarity(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Mean SSIM of two volumes with values in [0, 1]; uniform window, reflected at the faces.

    SSIM = (2 m1 m2 + c1) (2 cov + c2) / ((m1^2 + m2^2 + c1) (v1 + v2 + c2)), with local means m, variances v and
    covariance.
    """
    c1, c2 = (k**2 for k in SSIM_K)

    def local(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(ndimage.uniform_filter(values, size=WINDOW, mode="reflect"))

    mean_1, mean_2 = local(one), local(other)
    var_1, var_2 = local(one * one) - mean_1**2, local(other * other) - mean_2**2
    covariance = local(one * other) - mean_1 * mean_2
    ssim = ((2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)) / ((mean_1**2 + mean_2**2 + c1) * (var_1 + var_2 + c2))
    return float(ssim.mean())
