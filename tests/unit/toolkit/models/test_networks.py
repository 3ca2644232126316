"""Interaction, head and the whole network: formulas, switches, sizes. Full sizes run on the meta device."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from tmi.toolkit.config.presets import PRESETS, paper, preset, released, tiny
from tmi.toolkit.config.schema import MODALITIES, Config, FusionConfig, HeadConfig, NetworkConfig
from tmi.toolkit.models.tmi_clnet.fusion import Fusion
from tmi.toolkit.models.tmi_clnet.head import Head
from tmi.toolkit.models.tmi_clnet.ima import IntraModalityAggregation
from tmi.toolkit.models.tmi_clnet.model import TmiClnet, build
from tmi.toolkit.models.tmi_clnet.tcaf import TripleModalCrossAttention

SMALL = replace(tiny().network, text_encoder=replace(tiny().network.text_encoder, vocab_size=50))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fusion_of(config: NetworkConfig, seed: int = 0) -> Fusion:
    return build(config, seed=seed).fusion.eval()


# IMA


def ima(**changes: object) -> IntraModalityAggregation:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return IntraModalityAggregation(FusionConfig(**changes))  # type: ignore[arg-type]


def test_ima_on_one_token_equals_closed_form():
    """With one token: LayerNorm(x + Dense(V(x)))."""
    module = ima().eval()
    x = random(3, 1, 256)
    value = x @ module.value.weight.T + module.value.bias
    expected = layer_norm(x + value @ module.dense.weight.T + module.dense.bias, (256,), eps=1e-5)
    torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-4)


def test_ima_on_tokens_is_multi_head_attention():
    """Several tokens give the output of torch's scaled dot-product attention."""
    module = ima().eval()
    x = random(2, 5, 256)
    theirs = nn.MultiheadAttention(256, 16, batch_first=True).eval()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([module.query.weight, module.key.weight, module.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([module.query.bias, module.key.bias, module.value.bias]))
        theirs.out_proj.weight.copy_(module.dense.weight)
        theirs.out_proj.bias.copy_(module.dense.bias)
        expected = layer_norm(x + theirs(x, x, x, need_weights=False)[0], (256,))
        torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-4)


def test_one_token_gives_query_and_key_no_gradient():
    """The softmax over one score is constant."""
    module = ima().eval()
    module(random(4, 1, 256)).square().sum().backward()
    grown = {name: float(p.grad.abs().max()) for name, p in module.named_parameters()}
    for name, gradient in grown.items():
        assert (gradient == 0.0) == name.startswith(("query", "key")), name
    module.zero_grad()
    module(random(4, 2, 256)).square().sum().backward()
    assert float(module.query.weight.grad.abs().max()) > 0


def test_ima_dropouts_drop_heads_and_channels():
    """One token has one attention weight a head: 1, or with the dropout 0 or 2."""
    module = ima(ima_dense_dropout=0.0).train()
    with torch.no_grad():
        module.value.weight.zero_()
        module.value.bias.fill_(1.0)
        module.dense.weight.copy_(torch.eye(256))
        module.dense.bias.zero_()
        module.norm = nn.Identity()
        heads = module(torch.zeros(500, 1, 256)).reshape(500, 16, 16)
    assert set(heads.unique().tolist()) == {0.0, 2.0}
    assert (heads == heads[:, :, :1]).all()
    assert float((heads == 0).float().mean()) == pytest.approx(0.5, abs=0.03)


# TCAF


def test_tcaf_equals_hand_computed_case():
    """Equations (1) and (2) on numbers worked out by hand."""
    module = TripleModalCrossAttention(FusionConfig(width=2, ima_heads=1)).eval()
    q, k, v = (0.5, 0.1), (-1.5, 0.2), (2.0, -0.3)
    with torch.no_grad():
        for i, m in enumerate(MODALITIES):
            for part, (weight, bias) in ((module.query, q), (module.key, k), (module.value, v)):
                part[m].weight.fill_(weight + i)
                part[m].bias.fill_(bias)
            module.output[m].weight.copy_(torch.tensor([[0.7, 0.4 + i]]))
            module.output[m].bias.fill_(0.05 * i)
    features = [(0.3, -1.0), (2.0, 0.5), (-0.7, 1.1)]
    expected = []
    for i in range(3):
        j = (i + 1) % 3  # clinical -> radiomics -> image -> clinical
        for own in features[i]:
            query = own * (q[0] + i) + q[1]
            scores = [math.exp(query * (other * (k[0] + j) + k[1])) for other in features[j]]
            values = [other * (v[0] + j) + v[1] for other in features[j]]
            hidden = sum(s * x for s, x in zip(scores, values, strict=True)) / sum(scores)
            expected.append(0.7 * hidden + (0.4 + i) * own + 0.05 * i)
    fused = module(*(torch.tensor([f]) for f in features))
    assert fused.shape == (1, 1, 6)
    torch.testing.assert_close(fused[0, 0], torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_ring_is_clinical_radiomics_image():
    """What a modality's part of the fused sequence depends on: itself and its successor on the ring."""
    assert MODALITIES == ("clinical", "radiomics", "image")
    module = TripleModalCrossAttention(FusionConfig()).eval()
    features = [random(1, 256, seed=i).requires_grad_() for i in range(3)]
    fused = module(*features)
    assert fused.shape == (1, 1, 768)
    for i in range(3):
        gradients = torch.autograd.grad(fused[..., 256 * i : 256 * (i + 1)].sum(), features, retain_graph=True)
        touched = {j for j, gradient in enumerate(gradients) if gradient.abs().max() > 0}
        assert touched == {i, (i + 1) % 3}


def test_released_dropout_is_on_attention_weights():
    """Preset `released` drops attention weights with 0.1, `paper` none."""
    assert (paper().network.fusion.tcaf_dropout, released().network.fusion.tcaf_dropout) == (0.0, 0.1)
    module = TripleModalCrossAttention(FusionConfig(tcaf_dropout=0.1)).train()
    assert module.dropout.p == 0.1
    seen: list[Tensor] = []
    module.dropout.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module(*(random(2, 256, seed=i) for i in range(3)))
    assert [tuple(w.shape) for w in seen] == [(2, 256, 256)] * 3
    torch.testing.assert_close(seen[0].sum(dim=-1), torch.ones(2, 256))


# Head


def test_paper_head_is_densenet_121_with_logits():
    """MONAI's 1D DenseNet-121 with one Linear at its end."""
    head = Head(HeadConfig())
    layers = [len(getattr(head.densenet.features, f"denseblock{i}")) for i in range(1, 5)]
    assert layers == [6, 12, 24, 16]
    assert head.densenet.class_layers.out.in_features == 1024
    assert [tuple(getattr(head.densenet.features, f"transition{i}").conv.kernel_size) for i in (1, 2, 3)] == [(1,)] * 3
    assert isinstance(head.densenet.features.norm5, nn.BatchNorm1d)
    with torch.no_grad():
        logits = head.eval()(random(4, 1, 768) * 50)
    assert logits.shape == (4, 2)
    assert not any(isinstance(m, nn.Sigmoid | nn.Softmax) for m in head.modules())


def test_released_head_differs_as_documented():
    """Transitions are 3 wide, the final norm is missing, a sigmoid ends the head."""
    head = Head(released().network.head).eval()
    convolutions = [getattr(head.densenet.features, f"transition{i}").conv for i in (1, 2, 3)]
    assert [(c.kernel_size, c.padding) for c in convolutions] == [((3,), (1,))] * 3
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [(256, 128), (512, 256), (1024, 512)]
    assert isinstance(head.densenet.features.norm5, nn.Identity)
    parts = list(head.densenet.class_layers.out)
    assert [type(p) for p in parts] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear, nn.Sigmoid]
    assert [(p.in_features, p.out_features) for p in (parts[0], parts[3])] == [(1024, 512), (512, 2)]
    assert parts[2].p == 0.5
    with torch.no_grad():
        answers = head(random(4, 1, 768) * 50)
    assert answers.shape == (4, 2)
    assert ((answers >= 0) & (answers <= 1)).all()


def authors_head(blocks: tuple[int, ...], growth: int, width: int) -> list[nn.Module]:
    """The authors' head, written from docs/decisions.md: layers in the order in which the input passes them."""

    class Dense(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.BatchNorm1d(channels), nn.ReLU(), nn.Conv1d(channels, 4 * growth, 1),
                nn.BatchNorm1d(4 * growth), nn.ReLU(), nn.Conv1d(4 * growth, growth, 3, padding=1),
            )  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, self.body(x)], dim=1)

    layers: list[nn.Module] = [nn.Conv1d(1, width, 7, stride=2, padding=3), nn.BatchNorm1d(width), nn.ReLU()]
    layers.append(nn.MaxPool1d(3, stride=2, padding=1))
    for number, count in enumerate(blocks):
        for _ in range(count):
            layers.append(Dense(width))
            width += growth
        if number < len(blocks) - 1:
            layers += [nn.BatchNorm1d(width), nn.ReLU(), nn.Conv1d(width, width // 2, 3, padding=1), nn.AvgPool1d(2)]
            width //= 2
    layers += [nn.AdaptiveAvgPool1d(1), nn.Flatten()]
    return [*layers, nn.Linear(width, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, 2), nn.Sigmoid()]


@pytest.mark.parametrize(
    ("blocks", "growth", "width", "parameters"), [((6, 12, 24, 16), 32, 64, 7_429_762), ((2, 1), 8, 6, None)]
)
def test_released_head_equals_independent_implementation(blocks, growth, width, parameters):
    """The head of `released` has the authors' parameters and, with equal weights, their outputs."""
    head = Head(HeadConfig(style="released", blocks=blocks, growth=growth, init_features=width)).double()
    theirs = nn.Sequential(*authors_head(blocks, growth, width)).double()
    with torch.no_grad():
        for tensor in theirs.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.3 * random(*tensor.shape, seed=7).tanh().to(tensor))
    values = list(theirs.state_dict().values())
    names = list(head.state_dict())
    assert [head.state_dict()[n].shape for n in names] == [v.shape for v in values]
    head.load_state_dict(dict(zip(names, values, strict=True)))
    assert parameters in (None, sum(p.numel() for p in head.parameters()))
    x = random(3, 1, 96).double()
    for ours, reference in ((head.eval(), theirs.eval()), (head.train(), theirs.train())):
        for module in (ours, reference):
            for part in module.modules():
                if isinstance(part, nn.Dropout):
                    part.p = 0.0
        with torch.no_grad():
            torch.testing.assert_close(ours(x), reference(x), atol=1e-12, rtol=1e-10)


def test_released_head_of_earlier_version_keeps_its_outputs():
    """Weights without convolution biases, as earlier versions wrote, load into the form that they were trained for."""
    head = Head(HeadConfig(style="released", blocks=(2, 1), growth=8, init_features=6)).eval()
    state = {n: t for n, t in head.state_dict().items() if not (n.endswith("bias") and ("conv" in n))}
    for tensor in state.values():
        if tensor.is_floating_point():
            tensor.add_(0.2 * random(*tensor.shape, seed=3).tanh())
    head.load_state_dict(state, strict=True)
    x = random(3, 1, 96)
    with torch.no_grad():
        features = head.densenet.features(x)
        expected = head.densenet.class_layers.out(features.relu().mean(dim=-1))
        assert (features < 0).any()
        torch.testing.assert_close(head(x), expected, atol=1e-5, rtol=1e-4)
    broken = {n: t for n, t in state.items() if n != "densenet.features.norm0.weight"}
    with pytest.raises(RuntimeError, match=r"norm0\.weight"):
        Head(HeadConfig(style="released", blocks=(2, 1), growth=8, init_features=6)).load_state_dict(broken)


# Ablations


def inputs(config: NetworkConfig, batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    return (
        random(batch, config.ct_encoder.feature_width, seed=1),
        random(batch, config.text_encoder.hidden_size, seed=2),
        random(batch, 1781, seed=3),
    )


def test_ima_off_is_the_identity():
    """Without IMA the projected feature passes unchanged."""
    config = replace(SMALL, fusion=replace(SMALL.fusion, ima=False))
    fusion = fusion_of(config)
    ct, text, radiomics = inputs(config)
    output = fusion(ct, text, radiomics)
    encoded = {"clinical": text, "radiomics": fusion.radiomics_encoder(radiomics), "image": ct}
    for modality, feature in encoded.items():
        projected = fusion.projection_norm[modality](fusion.projection[modality](feature))
        torch.testing.assert_close(getattr(output, f"{modality}_BC"), projected)
    assert not any(name.startswith("ima.") for name, _ in fusion.named_parameters())


def test_tcaf_off_is_the_plain_concatenation():
    """Without TCAF the head takes the concatenated features."""
    config = replace(SMALL, fusion=replace(SMALL.fusion, tcaf=False))
    fusion = fusion_of(config)
    seen: list[Tensor] = []
    fusion.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    output = fusion(*inputs(config))
    assert seen[0].shape == (3, 1, 3 * config.fusion.width)
    torch.testing.assert_close(
        seen[0][:, 0], torch.cat([output.clinical_BC, output.radiomics_BC, output.image_BC], dim=1)
    )
    assert not any(name.startswith("tcaf.") for name, _ in fusion.named_parameters())


@pytest.mark.parametrize(("ima_on", "tcaf_on"), [(False, False), (False, True), (True, False), (True, True)])
def test_table_3_rows_can_be_trained(ima_on, tcaf_on):
    """Each ablation of IMA and TCAF gives a finite loss and gradients."""
    config = replace(SMALL, fusion=replace(SMALL.fusion, ima=ima_on, tcaf=tcaf_on))
    fusion = build(config, seed=0).fusion.train()
    fusion(*inputs(config)).logits_BK.sum().backward()
    silent = {n for n, p in fusion.named_parameters() if p.grad is None}
    assert silent == set()


def test_output_features_are_those_after_ima():
    """The alignment loss compares the features that the fusion returns after the IMA."""
    fusion = fusion_of(SMALL)
    seen: dict[str, Tensor] = {}
    for modality, module in fusion.ima.items():
        module.register_forward_hook(lambda _, __, output, m=modality: seen.__setitem__(m, output.squeeze(1)))
    output = fusion(*inputs(SMALL))
    for modality in MODALITIES:
        torch.testing.assert_close(getattr(output, f"{modality}_BC"), seen[modality])


# The whole network


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_at_full_size(name):
    """Every preset gives two logits on torch's meta device."""
    config: Config = preset(name)
    with torch.device("meta"):
        network = TmiClnet(config.network).eval()
        ids = torch.ones(2, 40, dtype=torch.long)
        output = network(torch.empty(2, 1, *config.ct.shape_DHW), ids, ids, torch.empty(2, 1781))
    assert output.logits_BK.shape == (2, 2)
    assert output.image_BC.shape == (2, config.network.fusion.width)


def test_batch_rows_are_independent():
    """In evaluation mode a row's logits do not depend on the other rows."""
    network = build(SMALL, seed=0).eval()
    ct, radiomics = random(3, 1, 12, 24, 24), random(3, 1781)
    ids = torch.randint(5, 50, (3, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        together = network(ct, ids, mask, radiomics).logits_BK
        for i in range(3):
            row = slice(i, i + 1)
            alone = network(ct[row], ids[row], mask[row], radiomics[row]).logits_BK
            torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=1e-4)


def test_seed_fixes_weights_and_caller_state():
    """The same seed gives the same weights; torch's random state does not change."""
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first, second, other = (build(SMALL, seed=s).state_dict() for s in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_state_dict_has_the_three_export_prefixes():
    """The export partitions the network by these prefixes."""
    prefixes = {name.partition(".")[0] for name in build(SMALL, seed=0).state_dict()}
    assert prefixes == {"ct_encoder", "text_encoder", "fusion"}
