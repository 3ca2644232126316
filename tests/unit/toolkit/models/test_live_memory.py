"""Bytes of tensors that live at once, counted on the meta device."""

from __future__ import annotations

import pytest
import torch

from factories.nano import nano
from factories.networks import VARIANTS, configured
from tmi.toolkit.models.live_memory import live_bytes, meta_network


def test_peak_counts_what_lives_at_once():
    """A storage counts once, views included, until its last reference is gone."""
    with torch.device("meta"), live_bytes() as live:
        one = torch.empty(100)
        view = one.view(10, 10)
        other = one + 1
        del one
        assert live.peak == 2 * 400
        del view, other
        torch.empty(150)
        assert live.peak == 2 * 400
        torch.empty(250)
    assert live.peak == 1000


def test_gradients_keep_the_saved_tensors():
    """A tensor that autograd saved counts until the graph is freed."""
    with torch.device("meta"):
        start = torch.ones(100, requires_grad=True)
        with live_bytes() as live:
            start.exp().exp().exp()
            with_graph = live.peak
        with live_bytes() as live, torch.no_grad():
            start.exp().exp().exp()
    assert (with_graph, live.peak) == (1200, 800)


@pytest.mark.parametrize("settings", VARIANTS, ids=" ".join)
def test_every_network_has_an_estimate(settings):
    """Each registered network runs on the meta device."""
    meta = meta_network(configured(*settings))
    assert meta.weight_bytes > 0
    assert meta.inference_bytes() > 0


def test_larger_ct_needs_more():
    """Twice the voxels of a CT take about twice the bytes."""
    small, large = (meta_network(configured(f"ct.shape_DHW=[{depth},64,64]")).inference_bytes() for depth in (16, 32))
    assert large == pytest.approx(2 * small, rel=0.1)
    assert meta_network(nano()).inference_bytes() < small
