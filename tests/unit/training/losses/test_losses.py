"""SDM, TMFF and the joint loss against hand-computed cases and the formula written out in plain Python."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tmi.toolkit.config.presets import paper, released
from tmi.toolkit.config.schema import LossConfig
from tmi.toolkit.models.outputs import Logits
from tmi.toolkit.models.tmi_clnet.fusion import FusionOutput
from tmi.training.losses.sdm import sdm
from tmi.training.losses.tmff import tmff
from tmi.training.losses.total import total_loss
from tmi.training.systems.mmd import MmdOutput
from tmi.training.systems.mmd import loss as mmd_loss
from tmi.training.systems.tmi_clnet import loss as system_loss


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one_way(a: Tensor, b: Tensor, ids: list[int], scale: float) -> float:
    """KL(a, b) as the specification writes it."""
    rows, n = [], len(ids)
    for i in range(n):
        cosine = [float(a[i] @ b[j] / (a[i].norm() * b[j].norm())) for j in range(n)]
        total = sum(math.exp(scale * c) for c in cosine)
        p = [math.exp(scale * c) / total for c in cosine]
        y = [1.0 if ids[i] == ids[j] else 0.0 for j in range(n)]
        q = [v / sum(y) for v in y]
        rows.append(sum(p[j] * (math.log(p[j]) - math.log(q[j] + 1e-8)) for j in range(n)))
    return sum(rows) / n


def by_hand(a: Tensor, b: Tensor, ids: list[int], scale: float) -> float:
    return one_way(a, b, ids, scale) + one_way(b, a, ids, scale)


@pytest.mark.parametrize("ids", [[0, 1, 0, 1, 1], [0, 0, 0, 0, 0], [0, 1, 2, 3, 4]], ids=str)
@pytest.mark.parametrize("scale", [1.0, 2.0, 50.0])
def test_sdm_is_the_formula(ids, scale):
    a, b = random(5, 8, seed=1), random(5, 8, seed=2)
    assert float(sdm(a, b, torch.tensor(ids), scale=scale)) == pytest.approx(by_hand(a, b, ids, scale), rel=1e-9)


TWO = torch.eye(2, dtype=torch.float64)
SAME = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)


def test_one_class_and_equal_features_fit_perfectly():
    """Here p = q = (1/2, 1/2): the divergence is 0."""
    assert float(sdm(SAME, SAME, torch.tensor([1, 1]), scale=50.0)) == pytest.approx(0.0, abs=1e-7)


def test_two_classes_and_orthogonal_features_fit_at_a_large_scale():
    """Here p = softmax(50, 0) is (1, 0) but for e^-50, as q is."""
    assert float(sdm(TWO, TWO, torch.tensor([0, 1]), scale=50.0)) == pytest.approx(0.0, abs=1e-7)


def test_two_classes_and_equal_features_cost_what_a_hand_computes():
    """Here p = (1/2, 1/2), q = (1, 0): KL = log(1/2) - (log 1 + log 1e-8) / 2, twice."""
    expected = 2 * (math.log(0.5) - 0.5 * math.log(1e-8))
    assert float(sdm(SAME, SAME, torch.tensor([0, 1]), scale=50.0)) == pytest.approx(expected, rel=1e-7)


def test_one_class_and_orthogonal_features_cost_what_a_hand_computes():
    """Here p = softmax(2, 0), q = (1/2, 1/2)."""
    p = math.exp(2) / (math.exp(2) + 1)
    expected = 2 * (p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5))
    assert float(sdm(TWO, TWO, torch.tensor([0, 0]), scale=2.0)) == pytest.approx(expected, rel=1e-6)


def test_sdm_is_symmetric_and_blind_to_the_features_lengths():
    a, b, ids = random(4, 6, seed=1), random(4, 6, seed=2), torch.tensor([0, 1, 1, 0])
    value = sdm(a, b, ids, scale=50.0)
    torch.testing.assert_close(sdm(b, a, ids, scale=50.0), value)
    torch.testing.assert_close(sdm(a * 37, b * 0.01, ids, scale=50.0), value)


def test_the_released_scale_does_not_saturate_and_the_papers_stays_finite():
    ids = torch.tensor([0, 1])
    assert float(sdm(TWO, TWO, ids, scale=2.0)) > 0.1
    a = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert torch.isfinite(sdm(a, -a, ids, scale=50.0))
    assert torch.isfinite(sdm(torch.zeros(2, 2), torch.zeros(2, 2), ids, scale=50.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_of_one_gives_exactly_0_and_no_gradient(dtype):
    a = random(1, 8).to(dtype).requires_grad_()
    value = sdm(a, random(1, 8, seed=1).to(dtype), torch.tensor([1]), scale=50.0)
    value.backward()
    assert float(value.detach()) == 0.0
    assert float(a.grad.abs().max()) == 0.0


def test_the_gradient_is_that_of_the_formula():
    a, b = random(3, 4, seed=1).requires_grad_(), random(3, 4, seed=2).requires_grad_()
    ids = torch.tensor([0, 1, 0])
    assert torch.autograd.gradcheck(lambda x, y: sdm(x, y, ids, scale=5.0), (a, b))


@pytest.mark.parametrize("weight", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
def test_tmff_weighs_the_pairs_with_text_by_lambda_and_the_other_by_the_rest(weight):
    text, radiomics, image = (random(4, 6, seed=i) for i in range(3))
    ids = [0, 1, 1, 0]
    it, rt, ir = (by_hand(a, b, ids, 50.0) for a, b in ((image, text), (radiomics, text), (image, radiomics)))
    value = tmff(text, radiomics, image, torch.tensor(ids), LossConfig(tmff_lambda=weight, sdm_scale=50.0))
    assert float(value) == pytest.approx(weight * (it + rt) / 2 + (1 - weight) * ir, rel=1e-9)


@pytest.mark.parametrize("weight", [0.0, 0.2, 0.6, 1.0])
def test_tmff_of_one_class_with_equal_texts_and_orthogonal_rest_costs_what_a_hand_computes(weight):
    """With scale 2: k = KL(softmax(2, 0), (1/2, 1/2)). A set of equal features against an orthogonal one costs k in one
    direction and 0 in the other, the two orthogonal ones k in each: lambda (k + k) / 2 + (1 - lambda) 2k.
    """
    p = math.exp(2) / (math.exp(2) + 1)
    k = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    value = tmff(SAME, TWO, TWO, torch.tensor([1, 1]), LossConfig(tmff_lambda=weight, sdm_scale=2.0))
    assert float(value) == pytest.approx((2 - weight) * k, rel=1e-6)


def test_tmff_is_not_symmetric_in_the_three_modalities():
    """The text stands in both pairs that lambda weighs, so it matters which set of features is the text's."""
    config, ids = LossConfig(tmff_lambda=0.2, sdm_scale=2.0), torch.tensor([1, 1])
    as_text, as_image = tmff(SAME, TWO, TWO, ids, config), tmff(TWO, TWO, SAME, ids, config)
    assert float(as_text) != pytest.approx(float(as_image))


@pytest.mark.parametrize("weight", [0.0, 0.6, 1.0])
def test_tmff_of_a_batch_of_one_is_0(weight):
    features = (random(1, 6, seed=i) for i in range(3))
    assert float(tmff(*features, torch.tensor([1]), LossConfig(tmff_lambda=weight))) == 0.0


def output(batch: int = 4) -> FusionOutput:
    return FusionOutput(random(batch, 2, seed=9), *(random(batch, 6, seed=i) for i in range(3)))


LABELS = torch.tensor([0, 1, 1, 0])


@pytest.mark.parametrize("config", [paper().loss, released().loss, LossConfig(alpha=0.3)], ids=lambda c: f"{c.alpha}")
def test_the_joint_loss_is_cross_entropy_plus_alpha_tmff(config):
    loss = total_loss(output(), LABELS, config)
    task = cross_entropy(output().logits_BK, LABELS)
    _, text, radiomics, image = output()
    alignment = tmff(text, radiomics, image, LABELS, config)
    torch.testing.assert_close(loss.task, task)
    torch.testing.assert_close(loss.alignment, alignment)
    torch.testing.assert_close(loss.total, task + config.alpha * alignment)


def test_the_ids_of_the_alignment_are_the_class_labels():
    values = {ids: float(total_loss(output(), torch.tensor(ids), paper().loss).alignment) for ids in
              product((0, 1), repeat=4)}  # fmt: skip
    _, text, radiomics, image = output()
    for ids, value in values.items():
        expected = float(tmff(text, radiomics, image, torch.tensor(ids), paper().loss))
        assert value == pytest.approx(expected)
    assert values[0, 1, 1, 0] == pytest.approx(values[1, 0, 0, 1])
    assert values[0, 1, 1, 0] != pytest.approx(values[0, 1, 0, 1])


def test_alpha_0_is_no_alignment_at_all():
    loss = total_loss(output(), LABELS, replace(paper().loss, alpha=0.0))
    torch.testing.assert_close(loss.total, cross_entropy(output().logits_BK, LABELS))
    assert float(loss.alignment) == 0.0


def test_a_batch_of_one_leaves_the_cross_entropy_alone():
    loss = total_loss(output(1), torch.tensor([1]), paper().loss)
    assert float(loss.total) == float(loss.task)


def test_with_fewer_than_three_modalities_the_loss_is_the_cross_entropy():
    logits = output().logits_BK
    loss = system_loss(Logits(logits), LABELS, paper().loss)
    torch.testing.assert_close(loss.total, cross_entropy(logits, LABELS))
    assert float(loss.alignment) == 0.0
    torch.testing.assert_close(
        system_loss(output(), LABELS, paper().loss).total, total_loss(output(), LABELS, paper().loss).total
    )


def test_the_loss_of_mmd_is_the_cross_entropy_plus_the_reconstruction():
    logits = output().logits_BK
    loss = mmd_loss(MmdOutput(logits, torch.tensor(0.25)), LABELS, paper().loss)
    assert float(loss.total) == pytest.approx(float(cross_entropy(logits, LABELS)) + 0.25)
