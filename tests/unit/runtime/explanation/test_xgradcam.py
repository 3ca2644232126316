"""XGrad-CAM against explicit sums, and against Grad-CAM where both are equal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tmi.runtime.explanation.xgradcam import combined_map, stage_cams, unit_range, xgradcam


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def grad_cam(activation: Tensor, gradient: Tensor) -> Tensor:
    """Selvaraju 2017: alpha_c is the mean of the gradient."""
    alpha = gradient.flatten(1).mean(dim=1)
    return torch.einsum("c,c...->...", alpha, activation).relu()


def explicit_cam(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    """The formula of docs/explain.md as plain loops in float64."""
    channels, depth, height, width = a.shape
    cam = np.zeros(a.shape[1:])
    for c in range(channels):
        total = a[c].sum()
        alpha = 0.0
        for d in range(depth):
            for h in range(height):
                for w in range(width):
                    alpha += a[c, d, h, w] / (total + 1e-7) * g[c, d, h, w]
        cam += alpha * a[c]
    return np.maximum(cam, 0.0)


class Small(nn.Module):
    """Two stages of one convolution, a global average, two logits: its gradients have a closed form."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.first = nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.ReLU())
            self.second = nn.Sequential(nn.Conv3d(3, 4, 1, stride=2), nn.ReLU())
            self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.second(self.first(x)).mean(dim=(2, 3, 4)))


def test_cam_equals_the_explicit_sum():
    """`xgradcam` equals the formula written as loops."""
    a, g = random(5, 3, 4, 2).abs(), random(5, 3, 4, 2, seed=1)
    expected = explicit_cam(a.double().numpy(), g.double().numpy())
    assert (expected > 0).any()
    np.testing.assert_allclose(xgradcam(a, g).numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", [0, 1])
def test_stage_cams_equal_closed_form_gradients(target):
    """The CAMs of both stages equal those of closed-form gradients."""
    network, x = Small().eval().requires_grad_(False), random(1, 1, 4, 6, 6, seed=2)
    logit, cams = stage_cams(lambda: network(x)[0, target], [network.first, network.second])
    assert logit == network(x)[0, target]
    # Second stage: dy/dA is the class's weight divided by the number of positions, everywhere.
    first = network.first(x)
    second = network.second(first)[0]
    positions = second[0].numel()
    slope = (network.out.weight[target] / positions)[:, None, None, None].expand_as(second)
    np.testing.assert_allclose(
        cams[1].numpy(), explicit_cam(second.double().numpy(), slope.double().numpy()), rtol=1e-4, atol=1e-6
    )
    # First stage: through the 1x1x1 convolution with stride 2, only even positions where the second stage is active.
    gradient = torch.zeros_like(first[0])
    active = (second > 0) * slope
    kernel = network.second[0].weight[:, :, 0, 0, 0]
    gradient[:, ::2, ::2, ::2] = torch.einsum("ok,odhw->kdhw", kernel, active)
    np.testing.assert_allclose(
        cams[0].numpy(), explicit_cam(first[0].double().numpy(), gradient.double().numpy()), rtol=1e-4, atol=1e-6
    )


def test_equals_grad_cam_for_constant_gradients():
    """alpha_c = g_c * sum(A_c) / (sum(A_c) + eps) = g_c: the mean of a constant gradient."""
    a = random(6, 4, 5, 3).abs() + 0.1
    g = random(6, seed=1)[:, None, None, None].expand_as(a)
    torch.testing.assert_close(xgradcam(a, g), grad_cam(a, g), rtol=1e-4, atol=1e-5)


def test_equals_grad_cam_for_constant_activations():
    """alpha_c = sum_x (1/N) g_c(x): the mean of the gradient, whatever the gradient."""
    a = (random(6, seed=4).abs() + 0.1)[:, None, None, None].expand(6, 4, 5, 3)
    g = random(6, 4, 5, 3, seed=5)
    torch.testing.assert_close(xgradcam(a, g), grad_cam(a, g), rtol=1e-4, atol=1e-5)


def test_differs_from_grad_cam_in_general():
    """For other activations and gradients the result differs from Grad-CAM."""
    a, g = random(6, 4, 5, 3).abs(), random(6, 4, 5, 3, seed=5)
    assert not torch.allclose(xgradcam(a, g), grad_cam(a, g), rtol=0.05)


def test_zero_channel_is_ignored():
    """A channel that is 0 everywhere does not contribute and does not divide by 0."""
    a, g = random(3, 2, 2, 2).abs(), random(3, 2, 2, 2, seed=1)
    a[1] = 0
    nonzero = [0, 2]
    assert xgradcam(a, g).isfinite().all()
    torch.testing.assert_close(xgradcam(a, g), xgradcam(a[nonzero], g[nonzero]))


def test_map_is_the_scaled_mean_of_scaled_cams():
    """The map is the mean of the scaled, resampled CAMs, scaled again."""
    coarse, fine = random(2, 2, 2).abs(), 100 * random(4, 4, 4, seed=1).abs()
    shape = (8, 8, 8)
    resampled = [
        torch.nn.functional.interpolate(
            ((c - c.min()) / (c.max() - c.min()))[None, None], size=shape, mode="trilinear", align_corners=False
        )[0, 0]
        for c in (coarse, fine)
    ]
    mean = (resampled[0] + resampled[1]) / 2
    torch.testing.assert_close(combined_map([coarse, fine], shape), (mean - mean.min()) / (mean.max() - mean.min()))


@pytest.mark.parametrize("value", [0.0, 3.5])
def test_constant_cam_becomes_zero(value):
    """A constant CAM has no spatial information and becomes 0."""
    assert torch.equal(unit_range(torch.full((2, 2, 2), value)), torch.zeros(2, 2, 2))


def test_stage_that_does_not_run_raises():
    """A stage that the network does not run raises instead of being skipped."""
    network, x = Small().eval(), random(1, 1, 4, 6, 6)
    with pytest.raises(ValueError, match="2 stages ran, not 3"):
        stage_cams(lambda: network(x)[0, 0], [network.first, network.second, nn.Identity()])


def test_hooks_are_removed_after_an_error():
    """The hooks are removed even if the network raises."""
    network = Small()

    def broken() -> Tensor:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        stage_cams(broken, [network.first])
    assert not network.first._forward_hooks


def test_no_graph_before_the_first_stage():
    """No gradient reaches weights before the first stage's output."""
    network, x = Small(), random(1, 1, 4, 6, 6)  # weights that require gradients
    _, cams = stage_cams(lambda: network(x)[0, 0], [network.first, network.second])
    assert not any(cam.requires_grad for cam in cams)
    assert network.first[0].weight.grad is None
