"""SDM, TMFF and the joint loss against hand-computed values and the formula in plain Python."""

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
from tmi.toolkit.models.baselines.mmd import MmdOutput
from tmi.toolkit.models.outputs import Logits
from tmi.toolkit.models.tmi_clnet.fusion import FusionOutput
from tmi.training.losses.sdm import sdm
from tmi.training.losses.tmff import tmff
from tmi.training.losses.total import total_loss
from tmi.training.systems.objectives import mmd_loss, tmi_clnet_loss


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one_way(a: Tensor, b: Tensor, ids: list[int], scale: float) -> float:
    """KL(a, b), written out as in the specification."""
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
def test_sdm_matches_formula(ids, scale):
    """SDM equals the formula in plain Python for mixed, equal and distinct ids."""
    a, b = random(5, 8, seed=1), random(5, 8, seed=2)
    assert float(sdm(a, b, torch.tensor(ids), scale=scale)) == pytest.approx(by_hand(a, b, ids, scale), rel=1e-9)


TWO = torch.eye(2, dtype=torch.float64)
SAME = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)


def test_sdm_of_equal_features_of_one_class_is_zero():
    """With p = q = (1/2, 1/2) the divergence is 0."""
    assert float(sdm(SAME, SAME, torch.tensor([1, 1]), scale=50.0)) == pytest.approx(0.0, abs=1e-7)


def test_sdm_of_orthogonal_features_of_two_classes_is_zero():
    """With p = softmax(50, 0) = (1, 0) up to e^-50 and q = (1, 0) the divergence is 0."""
    assert float(sdm(TWO, TWO, torch.tensor([0, 1]), scale=50.0)) == pytest.approx(0.0, abs=1e-7)


def test_sdm_of_equal_features_of_two_classes():
    """With p = (1/2, 1/2) and q = (1, 0): KL = log(1/2) - (log 1 + log 1e-8) / 2, twice."""
    expected = 2 * (math.log(0.5) - 0.5 * math.log(1e-8))
    assert float(sdm(SAME, SAME, torch.tensor([0, 1]), scale=50.0)) == pytest.approx(expected, rel=1e-7)


def test_sdm_of_orthogonal_features_of_one_class():
    """With p = softmax(2, 0) and q = (1/2, 1/2): KL by hand, twice."""
    p = math.exp(2) / (math.exp(2) + 1)
    expected = 2 * (p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5))
    assert float(sdm(TWO, TWO, torch.tensor([0, 0]), scale=2.0)) == pytest.approx(expected, rel=1e-6)


def test_sdm_is_symmetric_and_scale_invariant():
    """Exchanging the feature sets or scaling them does not change SDM."""
    a, b, ids = random(4, 6, seed=1), random(4, 6, seed=2), torch.tensor([0, 1, 1, 0])
    value = sdm(a, b, ids, scale=50.0)
    torch.testing.assert_close(sdm(b, a, ids, scale=50.0), value)
    torch.testing.assert_close(sdm(a * 37, b * 0.01, ids, scale=50.0), value)


def test_sdm_is_finite_at_both_preset_scales():
    """At scale 2 SDM does not saturate; at scale 50 it stays finite, zero features included."""
    ids = torch.tensor([0, 1])
    assert float(sdm(TWO, TWO, ids, scale=2.0)) > 0.1
    a = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert torch.isfinite(sdm(a, -a, ids, scale=50.0))
    assert torch.isfinite(sdm(torch.zeros(2, 2), torch.zeros(2, 2), ids, scale=50.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sdm_of_batch_of_one_is_zero(dtype):
    """A batch of one gives exactly 0 and no gradient."""
    a = random(1, 8).to(dtype).requires_grad_()
    value = sdm(a, random(1, 8, seed=1).to(dtype), torch.tensor([1]), scale=50.0)
    value.backward()
    assert float(value.detach()) == 0.0
    assert float(a.grad.abs().max()) == 0.0


def test_sdm_gradient_matches_finite_differences():
    """`gradcheck` accepts the gradient of SDM in float64."""
    a, b = random(3, 4, seed=1).requires_grad_(), random(3, 4, seed=2).requires_grad_()
    ids = torch.tensor([0, 1, 0])
    assert torch.autograd.gradcheck(lambda x, y: sdm(x, y, ids, scale=5.0), (a, b))


@pytest.mark.parametrize("weight", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
def test_tmff_weights_pairs_by_lambda(weight):
    """TMFF is lambda (image-text + radiomics-text) / 2 + (1 - lambda) image-radiomics."""
    text, radiomics, image = (random(4, 6, seed=i) for i in range(3))
    ids = [0, 1, 1, 0]
    it, rt, ir = (by_hand(a, b, ids, 50.0) for a, b in ((image, text), (radiomics, text), (image, radiomics)))
    value = tmff(text, radiomics, image, torch.tensor(ids), LossConfig(tmff_lambda=weight, sdm_scale=50.0))
    assert float(value) == pytest.approx(weight * (it + rt) / 2 + (1 - weight) * ir, rel=1e-9)


@pytest.mark.parametrize("weight", [0.0, 0.2, 0.6, 1.0])
def test_tmff_matches_hand_computed_value(weight):
    """With scale 2 and k = KL(softmax(2, 0), (1/2, 1/2)): equal against orthogonal features cost k in one direction and
    0 in the other, two orthogonal sets cost k in each, so TMFF = lambda (k + k) / 2 + (1 - lambda) 2k.
    """
    p = math.exp(2) / (math.exp(2) + 1)
    k = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    value = tmff(SAME, TWO, TWO, torch.tensor([1, 1]), LossConfig(tmff_lambda=weight, sdm_scale=2.0))
    assert float(value) == pytest.approx((2 - weight) * k, rel=1e-6)


def test_tmff_is_not_symmetric_in_modalities():
    """Both pairs weighted by lambda contain the text, so exchanging text and image changes TMFF."""
    config, ids = LossConfig(tmff_lambda=0.2, sdm_scale=2.0), torch.tensor([1, 1])
    as_text, as_image = tmff(SAME, TWO, TWO, ids, config), tmff(TWO, TWO, SAME, ids, config)
    assert float(as_text) != pytest.approx(float(as_image))


@pytest.mark.parametrize("weight", [0.0, 0.6, 1.0])
def test_tmff_of_batch_of_one_is_zero(weight):
    """TMFF of a batch of one is 0 for every lambda."""
    features = (random(1, 6, seed=i) for i in range(3))
    assert float(tmff(*features, torch.tensor([1]), LossConfig(tmff_lambda=weight))) == 0.0


def output(batch: int = 4) -> FusionOutput:
    return FusionOutput(random(batch, 2, seed=9), *(random(batch, 6, seed=i) for i in range(3)))


LABELS = torch.tensor([0, 1, 1, 0])


@pytest.mark.parametrize("config", [paper().loss, released().loss, LossConfig(alpha=0.3)], ids=lambda c: f"{c.alpha}")
def test_joint_loss_is_cross_entropy_plus_alpha_tmff(config):
    """Equation (6): total = cross entropy + alpha * TMFF, for the presets and another alpha."""
    loss = total_loss(output(), LABELS, config)
    task = cross_entropy(output().logits_BK, LABELS)
    _, text, radiomics, image = output()
    alignment = tmff(text, radiomics, image, LABELS, config)
    torch.testing.assert_close(loss.task, task)
    torch.testing.assert_close(loss.alignment, alignment)
    torch.testing.assert_close(loss.total, task + config.alpha * alignment)


def test_alignment_ids_are_class_labels():
    """The alignment depends on which cases share a class label, not on the label's value."""
    values = {ids: float(total_loss(output(), torch.tensor(ids), paper().loss).alignment) for ids in
              product((0, 1), repeat=4)}  # fmt: skip
    _, text, radiomics, image = output()
    for ids, value in values.items():
        expected = float(tmff(text, radiomics, image, torch.tensor(ids), paper().loss))
        assert value == pytest.approx(expected)
    assert values[0, 1, 1, 0] == pytest.approx(values[1, 0, 0, 1])
    assert values[0, 1, 1, 0] != pytest.approx(values[0, 1, 0, 1])


def test_alpha_zero_disables_alignment():
    """With alpha 0 the loss is the cross entropy and the alignment is 0."""
    loss = total_loss(output(), LABELS, replace(paper().loss, alpha=0.0))
    torch.testing.assert_close(loss.total, cross_entropy(output().logits_BK, LABELS))
    assert float(loss.alignment) == 0.0


def test_joint_loss_of_batch_of_one_is_cross_entropy():
    """A batch of one has no alignment term."""
    loss = total_loss(output(1), torch.tensor([1]), paper().loss)
    assert float(loss.total) == float(loss.task)


def test_ablated_tmi_clnet_loss_is_cross_entropy():
    """With fewer than three modalities the loss is the cross entropy; with three it is the joint loss."""
    logits = output().logits_BK
    loss = tmi_clnet_loss(Logits(logits), LABELS, paper().loss)
    torch.testing.assert_close(loss.total, cross_entropy(logits, LABELS))
    assert float(loss.alignment) == 0.0
    torch.testing.assert_close(
        tmi_clnet_loss(output(), LABELS, paper().loss).total, total_loss(output(), LABELS, paper().loss).total
    )


def test_mmd_loss_adds_reconstruction():
    """The loss of mmd is the cross entropy plus the reconstruction error."""
    logits = output().logits_BK
    loss = mmd_loss(MmdOutput(logits, torch.tensor(0.25)), LABELS, paper().loss)
    assert float(loss.total) == pytest.approx(float(cross_entropy(logits, LABELS)) + 0.25)


def test_label_smoothing_equals_torchs():
    """The task loss is torch's cross entropy with label smoothing: targets of 0.95 and 0.05 for 0.1."""
    logits, labels = random(6, 2), torch.tensor([0, 1, 1, 0, 1, 0])
    config = LossConfig(label_smoothing=0.1, alpha=0.0)
    log_p = logits.log_softmax(1)
    by_hand = -(0.95 * log_p[range(6), labels] + 0.05 * log_p[range(6), 1 - labels]).mean()
    loss = tmi_clnet_loss(Logits(logits), labels, config)
    torch.testing.assert_close(loss.total, by_hand)
    torch.testing.assert_close(loss.total, cross_entropy(logits, labels, label_smoothing=0.1))
    assert loss.total != cross_entropy(logits, labels)
