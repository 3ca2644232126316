"""Formulas of the baselines simpleff, hfbsurv, vit and mmd."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from factories.networks import SUBSETS, configured, inputs
from tmi.toolkit.config.schema import MODALITIES
from tmi.toolkit.errors import UsageError
from tmi.toolkit.models.baselines.hfbsurv import FactorisedBilinear
from tmi.toolkit.models.baselines.mmd import MmdFusion, kept_modalities
from tmi.toolkit.models.multimodal import MultimodalNetwork
from tmi.training.systems.factory import build_network


def test_simpleff_averages_slice_probabilities():
    """The probability of simpleff is the mean of the probabilities of its slices."""
    config = configured("system.name=simpleff", "system.simpleff.slices_of_64=[8,40]")
    network = build_network(config, seed=1).eval()
    with torch.no_grad():
        network.fusion.out.weight.mul_(40)  # far from linear: the mean of the logits gives another output
        network.ct_encoder.reduce.weight.mul_(40)
    assert network.ct_encoder.slices == [1, 5]
    given = inputs()
    one_by_one = []
    for number in (1, 5):
        network.ct_encoder.slices = [number, number]
        one_by_one.append(network(**given).logits_BK.softmax(dim=1))
    network.ct_encoder.slices = [1, 5]
    torch.testing.assert_close(network(**given).logits_BK.exp(), (one_by_one[0] + one_by_one[1]) / 2)


def test_factorised_bilinear_pooling_matches_formula():
    """Sum pooling over the rank, signed square root, L2 norm."""
    torch.manual_seed(0)
    module = FactorisedBilinear(6, pooled=3, rank=4, dropout=0.0).double()
    a, b = torch.randn(2, 6, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    product = (module.left(a) * module.right(b)).detach().numpy()
    sums = np.array([[product[i, 4 * k : 4 * k + 4].sum() for k in range(3)] for i in range(2)])
    rooted = np.sign(sums) * np.sqrt(np.abs(sums))
    expected = rooted / np.linalg.norm(rooted, axis=1, keepdims=True)
    np.testing.assert_allclose(module(a, b).detach().numpy(), expected, rtol=1e-6)


def test_vit_rejects_patches_that_do_not_divide_input():
    """A patch size that does not divide the input is a usage error."""
    with pytest.raises(UsageError, match="patches of \\(5, 5\\) do not divide an input of \\(16, 16\\)"):
        build_network(configured("system.name=vit", "system.vit.patch_DHW=[4,5,5]"), seed=0)


def mmd() -> MultimodalNetwork:
    network = build_network(configured("system.name=mmd"), seed=2)
    assert isinstance(network, MultimodalNetwork)
    assert isinstance(network.fusion, MmdFusion)
    return network


@pytest.mark.parametrize("present", SUBSETS, ids="-".join)
def test_mmd_ignores_missing_modalities(present):
    """The output for any subset does not depend on the inputs of missing modalities, NaN included."""
    network = mmd().eval()
    available = torch.tensor([[m in present for m in MODALITIES]]).expand(4, -1)
    given = inputs()
    replacements = {
        "image": ("ct", torch.full_like(given["ct"], torch.nan)),
        "clinical": ("input_ids", given["input_ids"] * 0),
        "radiomics": ("radiomics", torch.full_like(given["radiomics"], torch.nan)),
    }
    missing = dict(replacements[m] for m in MODALITIES if m not in present)
    before = network(**given, available_BM=available)
    after = network(**given | missing, available_BM=available)
    assert torch.isfinite(before.logits_BK).all()
    torch.testing.assert_close(after.logits_BK, before.logits_BK)
    torch.testing.assert_close(after.reconstruction, before.reconstruction)
    assert not torch.allclose(before.logits_BK, network(**given).logits_BK)


def test_mmd_defaults_to_all_modalities():
    """Naming all modalities as available equals naming none."""
    network = mmd().eval()
    named = network(**inputs(), available_BM=torch.ones(4, 3, dtype=torch.bool))
    torch.testing.assert_close(named.logits_BK, network(**inputs()).logits_BK)


def test_mmd_rejects_case_without_modality():
    """A case without any available modality is an error."""
    with pytest.raises(ValueError, match="no modality"):
        mmd()(**inputs(), available_BM=torch.tensor([[True, True, True]] * 3 + [[False] * 3]))


def test_mmd_modality_dropout_rate():
    """Modality dropout keeps each available modality with probability 1/2 and at least one always."""
    torch.manual_seed(0)
    available = torch.tensor([[True, True, True], [True, False, True], [False, True, False]]).repeat(4000, 1)
    kept = kept_modalities(available, 0.5)
    assert not (kept & ~available).any()
    assert kept.any(dim=1).all()
    three = kept[available.all(dim=1)].float()
    # kept with probability 1/2, or as the one restored when none is kept: 1/2 + 1/8 * 1/3
    assert three.mean(dim=0).numpy() == pytest.approx(0.5 + 1 / 24, abs=0.03)


def test_mmd_reconstruction_target_is_detached():
    """The reconstruction trains the decoders; its gradient reaches an embedding only through the fused feature."""
    network = mmd().eval()
    network(**inputs()).reconstruction.backward()
    assert all(float(p.grad.abs().max()) > 0 for p in network.fusion.decode.parameters())
    network.zero_grad()
    for towards in network.fusion.towards.values():
        towards.register_forward_hook(lambda _, __, fused: fused.detach())
    network(**inputs()).reconstruction.backward()
    assert all(p.grad is None or not p.grad.any() for p in network.fusion.embed.parameters())
