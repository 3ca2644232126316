"""XGrad-CAM in 3D: map of the CT regions that support one class.

C channels, x positions of a stage's grid, A the stage's output, y the logit of the explained class:

    alpha_c = sum_x [ A_c(x) / (sum_x A_c(x) + 1e-7) ] * dy/dA_c(x)
    CAM     = ReLU( sum_c alpha_c A_c )

Each residual stage gives one CAM, which is scaled to [0, 1] by its minimum and maximum and resampled trilinearly to the
input grid [D,H,W]. Their mean, scaled to [0, 1] again, is the map. Source: R. Fu et al. 2020; stages and scaling:
Figure 3 of the paper. A constant CAM has no spatial information and becomes 0.

Memory: nothing before the first stage's output needs a gradient, so no activations of the stem and the first stage are
stored, which hold most of the voxels. Output and gradient of each stage are reduced to one value a position at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

EPS = 1e-7
"""Avoids division by 0 for a channel that is 0 everywhere."""


def xgradcam(activation_Cx: Float[Tensor, "C *x"], gradient_Cx: Float[Tensor, "C *x"]) -> Float[Tensor, "*x"]:
    """CAM of one stage, not scaled, >= 0.

    Args:
        activation_Cx: A of one case, with any number of spatial axes.
        gradient_Cx: dy/dA, same shape.
    """
    flat, slope = activation_Cx.flatten(1), gradient_Cx.flatten(1)
    # alpha_c = <A_c, dy/dA_c> / (sum A_c + eps)
    alpha_C = torch.linalg.vecdot(flat, slope) / (flat.sum(dim=1) + EPS)
    cam: Tensor = (alpha_C @ flat).relu_().reshape(activation_Cx.shape[1:])
    return cam


def unit_range(values: Tensor) -> Tensor:
    """Scale to [0, 1] by minimum and maximum; 0 if they are equal."""
    low, high = values.amin(), values.amax()
    if not high > low:
        return torch.zeros_like(values)
    return (values - low) / (high - low)


def run_recorded(forward: Callable[[], Tensor], stages: Sequence[nn.Module]) -> tuple[Tensor, list[Tensor]]:
    """Output of the network with its autograd graph, and the output of each stage.

    Args:
        forward: runs the network once, for one case.
        stages: modules that `forward` runs, in the network's order, each with an output [1,C,...].
    """
    outputs: list[Tensor] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not outputs:
            output = output.detach().requires_grad_()  # cuts the graph: nothing before the first stage needs a gradient
        outputs.append(output)
        return output

    handles: list[Any] = [stage.register_forward_hook(record) for stage in stages]
    try:
        with torch.enable_grad():
            result = forward()
    finally:
        for handle in handles:
            handle.remove()
    if len(outputs) != len(stages):
        raise ValueError(f"{len(outputs)} stages ran, not {len(stages)}")
    return result, outputs


def cams_of(logit: Tensor, outputs: Sequence[Tensor], *, keep_graph: bool = False) -> list[Tensor]:
    """CAM of each stage on the stage's grid.

    Args:
        logit: a logit of `run_recorded`'s output.
        outputs: the outputs of the stages.
        keep_graph: whether the CAMs of another logit of the same run follow.
    """
    gradients = torch.autograd.grad(logit, outputs, allow_unused=True, retain_graph=keep_graph)
    cams: list[Tensor] = []
    for output, gradient in zip(outputs, gradients, strict=True):
        if gradient is None:
            raise ValueError("the logit does not depend on a stage")
        cams.append(xgradcam(output.detach()[0], gradient[0]))
    return cams


def stage_cams(forward: Callable[[], Tensor], stages: Sequence[nn.Module]) -> tuple[Tensor, list[Tensor]]:
    """Logit, and CAM of each stage on the stage's grid.

    Args:
        forward: runs the network once and returns the logit of the explained class for one case.
        stages: as in `run_recorded`.

    Returns:
        The logit, and one CAM for each stage.
    """
    logit, outputs = run_recorded(forward, stages)
    return logit.detach(), cams_of(logit, outputs)


def combined_map(cams: Sequence[Float[Tensor, "d h w"]], shape_DHW: tuple[int, int, int]) -> Float[Tensor, "D H W"]:
    """Mean of the scaled CAMs on the input grid, scaled to [0, 1].

    Args:
        cams: one CAM for each stage, on its own grid.
        shape_DHW: shape of the input grid.
    """
    total = torch.zeros(shape_DHW)
    for cam in cams:
        total += interpolate(unit_range(cam)[None, None], size=shape_DHW, mode="trilinear", align_corners=False)[0, 0]
    return unit_range(total / len(cams))
