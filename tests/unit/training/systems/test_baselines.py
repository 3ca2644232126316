"""Formulas of the baselines simpleff, hfbsurv, vit and mmd."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from factories.networks import SUBSETS, configured, inputs
from tmi.toolkit.config.baseline_schema import HfbsurvConfig, MmdConfig
from tmi.toolkit.config.presets import paper, released
from tmi.toolkit.config.schema import MODALITIES
from tmi.toolkit.errors import UsageError
from tmi.toolkit.models.baselines.hfbsurv import FactorisedBilinear, HfbsurvFusion
from tmi.toolkit.models.baselines.mmd import MmdFusion, kept_modalities
from tmi.toolkit.models.encoders.resnet2d import create_resnet2d
from tmi.toolkit.models.multimodal import MultimodalNetwork
from tmi.toolkit.storage.serialization import from_json
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


def own_hfbsurv(weights: dict[str, torch.Tensor], features: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits of HFBSurv in evaluation mode from named weights, written without the project's modules."""

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def pool(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        product = (a * b).reshape(len(a), 20, 20).sum(2)
        rooted = torch.relu(product).sqrt() - torch.relu(-product).sqrt()
        return rooted / rooted.norm(dim=1, keepdim=True)

    scored, score = {}, {}
    for m, feature in features.items():
        h = torch.tanh(linear(torch.tanh(linear(feature, f"embed.{m}.0")), f"embed.{m}.2"))
        x = torch.hstack((h, pool(linear(h, f"own.{m}"), linear(h, f"own.{m}"))))
        score[m] = 1 / (1 + torch.exp(-linear(x, "score")))
        scored[m] = score[m] * x
    pairs = [("clinical", "radiomics"), ("clinical", "image"), ("radiomics", "image")]
    ratios, crossed = [], []
    for a, b in pairs:
        overlap = (torch.softmax(scored[a], 1) * torch.softmax(scored[b], 1)).sum(1, keepdim=True)
        ratios.append((score[a] + score[b]) / (overlap + 0.5))
        crossed.append(pool(linear(scored[a], f"cross.{a}"), linear(scored[b], f"cross.{b}")))
    shares = torch.softmax(torch.hstack(ratios), 1)
    cross = sum(shares[:, i : i + 1] * part for i, part in enumerate(crossed))
    z = torch.hstack((sum(scored.values()), cross))
    z = (z - weights["head.0.running_mean"]) / (weights["head.0.running_var"] + 1e-5).sqrt()
    z = z * weights["head.0.weight"] + weights["head.0.bias"]
    return linear(torch.tanh(linear(torch.tanh(linear(z, "head.1")), "head.4")), "head.7")


def test_hfbsurv_equals_an_independent_implementation():
    """At the paper's sizes HFBSurv has the source's parameters, and its logits are those of the written-out formula."""
    torch.manual_seed(0)
    fusion = HfbsurvFusion(paper()).double().eval()
    fusion.head[0].running_mean.normal_()
    fusion.head[0].running_var.uniform_(0.5, 2)
    count = sum(p.numel() for name, p in fusion.named_parameters() if not name.startswith("radiomics_encoder."))
    assert count == 360_727 - 2  # the source's code counts the fixed range and shift of its survival output
    ct, text, radiomics = (torch.randn(5, n, dtype=torch.float64) for n in (2048, 768, 1781))
    features = {"clinical": text, "radiomics": fusion.radiomics_encoder(radiomics), "image": ct}
    with torch.no_grad():
        expected = own_hfbsurv(dict(fusion.state_dict()), features)
        torch.testing.assert_close(fusion(ct, text, radiomics).logits_BK, expected, rtol=1e-6, atol=1e-8)


def test_hfbsurv_of_earlier_versions_keeps_its_form():
    """A config without the key has the form of earlier versions, with its names and number of parameters."""
    config = paper()
    old = replace(config, system=replace(config.system, hfbsurv=HfbsurvConfig()))
    fusion = HfbsurvFusion(old)
    count = sum(p.numel() for name, p in fusion.named_parameters() if not name.startswith("radiomics_encoder."))
    assert count == 507_267
    assert {"own.image.left.weight", "score.image.weight", "cross.clinical_image.right.weight"} <= set(
        fusion.state_dict()
    )
    assert from_json(HfbsurvConfig, {"embedding": 50}).layers == "separate"
    assert from_json(MmdConfig, {"embedding": 256}).reconstruction == "mean"


def own_resnet2d(weights: dict[str, torch.Tensor], x: torch.Tensor, layers: tuple[int, ...]) -> torch.Tensor:
    """Global average of a bottleneck ResNet with a 3x3 stem of stride 1 and no max pooling, in evaluation mode."""
    from torch.nn.functional import batch_norm, conv2d, relu

    def convolve(x: torch.Tensor, conv: str, norm: str, stride: int = 1) -> torch.Tensor:
        kernel = weights[f"{conv}.weight"]
        x = conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        stats = (weights[f"{norm}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
        return batch_norm(x, *stats)

    x = relu(convolve(x, "conv1", "bn1"))
    for stage, depth in enumerate(layers, start=1):
        for block in range(depth):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = relu(convolve(x, f"{name}.conv1", f"{name}.bn1"))
            y = relu(convolve(y, f"{name}.conv2", f"{name}.bn2", stride))
            y = convolve(y, f"{name}.conv3", f"{name}.bn3")
            if f"{name}.downsample.0.weight" in weights:
                x = convolve(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
            x = relu(x + y)
    return x.mean(dim=(2, 3))


def test_released_resnet2d_has_no_max_pool():
    """The 2D ResNet of `released` equals an independent one with a 3x3 stem of stride 1 and no pooling."""
    config = released().system.resnet2d
    assert (config.stem_size, config.stem_stride, config.max_pool) == (3, 1, False)
    small = replace(config, layers=(2, 1, 2, 1), planes=(4, 8, 8, 16))
    torch.manual_seed(1)
    network = create_resnet2d(small).double().eval()
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
    slices = torch.randn(2, 1, 24, 24, dtype=torch.float64)
    with torch.no_grad():
        expected = own_resnet2d(dict(network.state_dict()), slices, small.layers)
        torch.testing.assert_close(network(slices), expected)
        pooled = create_resnet2d(replace(small, max_pool=True)).double().eval()
        pooled.load_state_dict(network.state_dict())
        assert not torch.allclose(pooled(slices), expected)
    assert paper().system.resnet2d.max_pool


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


def test_mmd_reconstruction_is_summed_over_the_width():
    """The error of an embedding is its squared length, averaged over the modalities that a case has and over cases."""
    network = mmd().eval()
    available = torch.tensor([[True, True, True], [True, False, True], [False, True, False], [True, True, False]])
    given = inputs()
    seen: dict[str, torch.Tensor] = {}
    for kind in ("embed", "decode"):
        for m, module in getattr(network.fusion, kind).items():
            module.register_forward_hook(lambda _, __, y, name=f"{kind}.{m}": seen.update({name: y.detach()}))
    value = float(network(**given, available_BM=available).reconstruction.detach())
    width = network.fusion.embed["image"].out_features
    errors = torch.stack(
        [((seen[f"decode.{m}"] - seen[f"embed.{m}"]) ** 2).sum(dim=1) for m in MODALITIES], dim=1
    )  # [B,M]
    expected = float(((errors * available).sum(dim=1) / available.sum(dim=1)).mean())
    assert value == pytest.approx(expected, rel=1e-5)
    old = build_network(configured("system.name=mmd", "system.mmd.reconstruction=mean"), seed=2).eval()
    old.load_state_dict(network.state_dict())
    mean = float(old(**given, available_BM=available).reconstruction.detach())
    assert mean == pytest.approx(expected / width, rel=1e-5)


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
