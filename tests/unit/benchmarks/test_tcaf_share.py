"""`benchmarks/tcaf_share.py`: what the paper's TCAF passes between modalities, and the measure itself."""

from __future__ import annotations

import torch

from tcaf_share import exchanged, variance_share
from tmi.toolkit.config.presets import paper
from tmi.toolkit.models.tmi_clnet.tcaf import TripleModalCrossAttention


def share(tcaf: TripleModalCrossAttention) -> float:
    torch.manual_seed(1)
    # the IMA ends in a LayerNorm
    features = tuple(torch.nn.functional.layer_norm(torch.randn(24, 256), (256,)) for _ in range(3))
    order = torch.roll(torch.arange(24), 1)
    with torch.no_grad():
        return variance_share(tcaf(*features), exchanged(tcaf, features, order))


def test_tcaf_of_the_paper_passes_next_to_nothing():
    """At width 1 and random weights a hundredth of the output's variance comes from the attended modality."""
    shares = []
    for seed in range(7):
        torch.manual_seed(seed)
        shares.append(share(TripleModalCrossAttention(paper().network.fusion).eval()))
    assert sorted(shares)[3] < 0.01
    assert max(shares) < 0.05


def test_other_modality_counts_by_the_distribution_of_its_numbers_only():
    """The order of the attended modality's tokens has no effect: the TCAF sees a set of 256 numbers."""
    torch.manual_seed(0)
    tcaf = TripleModalCrossAttention(paper().network.fusion).eval()
    own, other, third = (torch.randn(4, 256) for _ in range(3))
    with torch.no_grad():
        output = tcaf(own, other, third)[:, :, :256]
        shuffled = tcaf(own, other[:, torch.randperm(256)], third)[:, :, :256]
    torch.testing.assert_close(shuffled, output, rtol=0, atol=1e-5)


def test_share_is_one_for_independent_and_zero_for_equal_outputs():
    """Outputs of other cases share nothing with the case's own; equal outputs differ in nothing."""
    torch.manual_seed(0)
    output = torch.randn(400, 1, 30)
    assert variance_share(output, output) == 0
    assert abs(variance_share(output, torch.roll(output, 1, dims=0)) - 1) < 0.05
