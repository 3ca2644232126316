"""Sanity check: a map that stays the same when the model's weights are drawn anew shows the image, not the model.

The weights are drawn anew in a cascade from the head back to the stem, each step on top of the ones before, and each
time the map is made again. Rank correlation (Spearman) and structural similarity (SSIM, 3D, window 7) with the map of
the trained weights should fall towards 0. Source: J. Adebayo et al. 2018.

Both are computed on at most `MAX_POSITIONS` positions an axis. What stays in common at the end is what any network of
this shape makes of any weights: bright places of the CT stay bright in a random first stage.
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
WINDOW = 7
SSIM_K = (0.01, 0.03)
"""Constants of the SSIM, for values in [0, 1]. Z. Wang et al. 2004."""


@dataclass(frozen=True, kw_only=True)
class RandomizationStep:
    """The map after one step of the cascade."""

    down_to: str
    """What was drawn anew last; everything behind it was before."""
    rank_correlation: float | None
    """With the trained map; None where the new map is 0 everywhere."""
    ssim: float
    """With the trained map."""


def cascade(network: TmiClnet) -> Iterator[tuple[str, list[nn.Module]]]:
    """The steps, from the head to the stem: name, and the modules that are drawn anew."""
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
    """Destroy the network step by step and compare; afterwards its weights are as they were.

    Args:
        network: of one fold.
        make_map: the map by the network as it is when called.
        trained_map: by its trained weights.
        seed: of the new weights.
    """
    before = block_mean(trained_map)
    kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    answers: list[RandomizationStep] = []
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name, modules in cascade(network):
                for part in (m for module in modules for m in module.modules()):
                    if callable(reset := getattr(part, "reset_parameters", None)):
                        reset()
                after = block_mean(make_map())
                answers.append(
                    RandomizationStep(
                        down_to=name,
                        rank_correlation=rank_correlation(before, after),
                        ssim=structural_similarity(before, after),
                    )
                )
    finally:
        network.load_state_dict(kept)
    return tuple(answers)


def block_mean(values_DHW: Float[np.ndarray, "D H W"]) -> Float[np.ndarray, "d h w"]:
    """Means over blocks, so that no axis has more than `MAX_POSITIONS` positions; what does not fill a block is cut
    off.
    """
    blocks = [-(-n // MAX_POSITIONS) for n in values_DHW.shape]
    cut = values_DHW[tuple(slice(0, n // b * b) for n, b in zip(values_DHW.shape, blocks, strict=True))]
    shape = [part for n, b in zip(cut.shape, blocks, strict=True) for part in (n // b, b)]
    return np.asarray(cut.reshape(shape).mean(axis=(1, 3, 5), dtype=np.float64))


def rank_correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    """Spearman's, ties by their mean rank; None where one of the two is constant."""
    from scipy.stats import rankdata

    ranks = [rankdata(v, axis=None) for v in (one, other)]
    if any(np.ptp(r) == 0 for r in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def structural_similarity(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Mean SSIM of two volumes with values in [0, 1]; uniform window, cut to the volume at its faces."""
    c1, c2 = (k**2 for k in SSIM_K)

    def local(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(ndimage.uniform_filter(values, size=WINDOW, mode="reflect"))

    mean_1, mean_2 = local(one), local(other)
    var_1, var_2 = local(one * one) - mean_1**2, local(other * other) - mean_2**2
    covariance = local(one * other) - mean_1 * mean_2
    ssim = ((2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)) / ((mean_1**2 + mean_2**2 + c1) * (var_1 + var_2 + c2))
    return float(ssim.mean())
