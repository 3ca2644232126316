"""XGrad-CAM in 3D: where the CT encoder's stages hold what speaks for one class.

C channels, x positions of a stage's grid, A the stage's output, y the logit of the explained class:

    alpha_c = sum_x [ A_c(x) / (sum_x A_c(x) + 1e-7) ] * dy/dA_c(x)
    CAM     = ReLU( sum_c alpha_c A_c )

One CAM for each residual stage, each scaled to [0, 1] by its minimum and maximum and resampled trilinearly to the input
grid [D,H,W]; their mean, scaled to [0, 1] again, is the map. Source: R. Fu et al. 2020; stages and scaling: the paper's
Figure 3. A constant CAM says nothing about places and becomes 0.

Memory: nothing needs a gradient before the first stage's output, so nothing is kept of the stem and the first stage,
which hold most of the voxels; each stage's output and gradient are reduced to one value a position at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

EPS = 1e-7
"""Keeps a channel that is silent everywhere from dividing by 0."""


def xgradcam(activation_Cx: Float[Tensor, "C *x"], gradient_Cx: Float[Tensor, "C *x"]) -> Float[Tensor, "*x"]:
    """The CAM of one stage, unscaled and 0 or more.

    Args:
        activation_Cx: A of one case; any number of spatial axes.
        gradient_Cx: dy/dA, of the same shape.
    """
    flat, slope = activation_Cx.flatten(1), gradient_Cx.flatten(1)
    alpha_C = torch.linalg.vecdot(flat, slope) / (flat.sum(dim=1) + EPS)
    cam: Tensor = (alpha_C @ flat).relu_().reshape(activation_Cx.shape[1:])
    return cam


def unit_range(values: Tensor) -> Tensor:
    """Scaled to [0, 1] by minimum and maximum; 0 where they are the same."""
    low, high = values.amin(), values.amax()
    if not high > low:
        return torch.zeros_like(values)
    return (values - low) / (high - low)


def stage_cams(forward: Callable[[], Tensor], stages: Sequence[nn.Module]) -> tuple[Tensor, list[Tensor]]:
    """The logit, and the CAM of each stage on the stage's own grid.

    Args:
        forward: runs the network once and gives the logit of the explained class for one case.
        stages: modules that `forward` runs, in the order of the network, each giving [1,C,...].

    Returns:
        The logit, and one CAM a stage.
    """
    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not outputs:
            output = output.detach().requires_grad_()  # what lies before needs no gradient
        outputs.append(output)
        return output

    handles: list[Any] = [stage.register_forward_hook(keep) for stage in stages]
    try:
        with torch.enable_grad():
            logit = forward()
    finally:
        for handle in handles:
            handle.remove()
    if len(outputs) != len(stages):
        raise ValueError(f"{len(outputs)} stages ran, not {len(stages)}")
    gradients = torch.autograd.grad(logit, outputs, allow_unused=True)
    cams: list[Tensor] = []
    for output, gradient in zip(outputs, gradients, strict=True):
        if gradient is None:
            raise ValueError("the logit does not depend on a stage")
        cams.append(xgradcam(output.detach()[0], gradient[0]))
    return logit.detach(), cams


def combined_map(cams: Sequence[Float[Tensor, "d h w"]], shape_DHW: tuple[int, int, int]) -> Float[Tensor, "D H W"]:
    """The mean of the scaled CAMs on the input grid, scaled to [0, 1].

    Args:
        cams: one a stage, each on its own grid.
        shape_DHW: the input grid.
    """
    total = torch.zeros(shape_DHW)
    for cam in cams:
        total += interpolate(unit_range(cam)[None, None], size=shape_DHW, mode="trilinear", align_corners=False)[0, 0]
    return unit_range(total / len(cams))
