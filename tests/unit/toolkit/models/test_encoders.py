"""The three encoders are those of the specification. Full sizes run on torch's meta device, without data."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from tmi.toolkit.config.presets import paper, released, tiny
from tmi.toolkit.config.schema import CtEncoderConfig
from tmi.toolkit.models.encoders.bert import TextEncoder
from tmi.toolkit.models.encoders.mlp import RadiomicsEncoder
from tmi.toolkit.models.encoders.resnet3d import CtEncoder
from tmi.toolkit.models.tmi_clnet.fusion import Fusion
from tmi.toolkit.models.tmi_clnet.model import build

SMALL = replace(tiny().network, text_encoder=replace(tiny().network.text_encoder, vocab_size=50))


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def shapes_of(module: nn.Module, names: dict[str, nn.Module], *inputs: Tensor) -> dict[str, tuple[int, ...]]:
    """Output shapes of the named parts, without the batch axis, and of the whole."""
    found: dict[str, tuple[int, ...]] = {}
    for name, part in names.items():
        part.register_forward_hook(lambda _, __, output, name=name: found.__setitem__(name, tuple(output.shape[1:])))
    found["out"] = tuple(module(*inputs).shape[1:])
    return found


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# CT encoder


def test_paper_ct_encoder_has_its_size_and_stages():
    """46,155,072 parameters, and the stage shapes of the specification."""
    with torch.device("meta"):
        encoder = CtEncoder(paper().network.ct_encoder).eval()
        stages = {name: getattr(encoder.backbone, name) for name in ("bn1", "layer1", "layer2", "layer3", "layer4")}
        shapes = shapes_of(encoder, stages, torch.empty(1, 1, 64, 512, 512))
    assert parameters(encoder) == 46_155_072
    assert shapes == {
        "bn1": (64, 64, 256, 256),
        "layer1": (256, 32, 128, 128),
        "layer2": (512, 16, 64, 64),
        "layer3": (1024, 8, 32, 32),
        "layer4": (2048, 4, 16, 16),
        "out": (2048,),
    }
    stem = encoder.backbone.conv1
    assert (stem.kernel_size, stem.stride, stem.padding, stem.in_channels) == ((7, 7, 7), (1, 2, 2), (3, 3, 3), 1)
    pool = encoder.backbone.maxpool
    assert (pool.kernel_size, pool.stride) == (3, 2)


def test_shortcut_b_projects_only_where_shape_changes():
    """A residual shortcut has a convolution exactly where stride or width change."""
    with torch.device("meta"):
        backbone = CtEncoder(paper().network.ct_encoder).backbone
    for name in ("layer1", "layer2", "layer3", "layer4"):
        first, *rest = getattr(backbone, name)
        assert isinstance(first.downsample[0], nn.Conv3d)
        assert all(block.downsample is None for block in rest)


def test_ct_feature_is_the_global_average():
    """The feature is the mean of the last stage over D, H and W."""
    encoder = build(SMALL, seed=0).ct_encoder.eval()
    last: list[Tensor] = []
    encoder.backbone.layer4.register_forward_hook(lambda _, __, output: last.append(output))
    feature = encoder(random(2, 1, 12, 24, 24))
    torch.testing.assert_close(feature, last[0].mean(dim=(2, 3, 4)))


def test_released_ct_feature_has_width_400():
    """The released code ends in a fully connected layer."""
    with torch.device("meta"):
        encoder = CtEncoder(released().network.ct_encoder).eval()
        assert encoder(torch.empty(1, 1, 16, 64, 64)).shape == (1, 400)
    assert (encoder.fc.in_features, encoder.fc.out_features) == (2048, 400)


def test_basic_block_gives_configured_width():
    """`feature_width` of the config is the width of the encoder's output."""
    config = CtEncoderConfig(block="basic", layers=(1, 1, 1, 1), planes=(4, 8, 12, 20))
    assert CtEncoder(config).eval()(random(1, 1, 8, 16, 16)).shape == (1, 20)


# Text encoder


def text_encoder(pooling: str) -> TextEncoder:
    config = replace(SMALL.text_encoder, pooling=pooling)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return TextEncoder(config).eval()


def tokens(length: int, padding: int, fill: int = 0) -> tuple[Tensor, Tensor]:
    ids = torch.randint(5, 50, (2, length), generator=torch.Generator().manual_seed(3))
    padded = torch.cat([ids, torch.full((2, padding), fill)], dim=1)
    mask = torch.cat([torch.ones_like(ids), torch.zeros(2, padding, dtype=torch.long)], dim=1)
    return padded, mask


def test_paper_text_encoder_is_bert_base():
    """Layers, heads, widths and parameters are those of BERT-base."""
    with torch.device("meta"):
        encoder = TextEncoder(paper().network.text_encoder)
    assert parameters(encoder) == 107_719_680  # BERT-base cased, 28,996 tokens, without its pooler
    ids = torch.ones(2, 512, dtype=torch.long, device="meta")
    assert encoder(ids, ids).shape == (2, 768)


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
def test_padding_changes_no_feature(pooling):
    """Neither the amount of padding nor the ids in it have an influence."""
    encoder = text_encoder(pooling)
    with torch.no_grad():
        alone = encoder(*tokens(9, 0))
        for padding, fill in ((1, 0), (7, 0), (55, 0), (7, 42)):
            torch.testing.assert_close(encoder(*tokens(9, padding, fill)), alone, atol=2e-6, rtol=1e-5)


def test_pooling_modes_match_their_definition():
    """`mean`: attended tokens; `cls`: first token; `pooler`: BERT's own layer on it."""
    ids, mask = tokens(6, 4)
    with torch.no_grad():
        encoder = text_encoder("mean")
        hidden: list[Tensor] = []
        encoder.bert.encoder.register_forward_hook(lambda _, __, output: hidden.append(output[0]))
        torch.testing.assert_close(encoder(ids, mask), hidden[0][:, :6].mean(dim=1))
        encoder = text_encoder("cls")
        encoder.bert.encoder.register_forward_hook(lambda _, __, output: hidden.append(output[0]))
        torch.testing.assert_close(encoder(ids, mask), hidden[1][:, 0])
        encoder = text_encoder("pooler")
        encoder.bert.encoder.register_forward_hook(lambda _, __, output: hidden.append(output[0]))
        dense = encoder.bert.pooler.dense
        torch.testing.assert_close(encoder(ids, mask), torch.tanh(dense(hidden[2][:, 0])))


def test_only_pooler_has_berts_pooling_layer():
    """The other modes carry no unused weights."""
    assert text_encoder("mean").bert.pooler is None
    assert text_encoder("pooler").bert.pooler is not None


def test_attention_mask_equals_transformers_mask():
    """The additive mask gives what transformers' own mask gives."""
    encoder = text_encoder("mean")
    ids, mask = tokens(6, 4)
    with torch.no_grad():
        theirs = encoder.bert(input_ids=ids, attention_mask=mask).last_hidden_state[:, :6].mean(dim=1)
        torch.testing.assert_close(encoder(ids, mask), theirs, atol=2e-6, rtol=1e-5)


# Radiomics encoder and projections


def test_radiomics_encoder_layers():
    """Linear, BatchNorm, ReLU, Linear, without biases."""
    encoder = RadiomicsEncoder(paper().network.radiomics_encoder).eval()
    first, norm, _, last = encoder.layers
    assert (first.in_features, first.out_features, first.bias) == (1781, 1024, None)
    assert (last.in_features, last.out_features, last.bias) == (1024, 512, None)
    norm.running_mean.copy_(random(1024))
    norm.running_var.copy_(random(1024).abs() + 0.1)
    x = random(3, 1781)
    hidden = (x @ first.weight.T - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    expected = relu(hidden * norm.weight + norm.bias) @ last.weight.T
    torch.testing.assert_close(encoder(x), expected, atol=1e-5, rtol=1e-4)


def test_projection_width_and_norm_by_preset():
    """Width 256 in both presets; LayerNorm in `paper`, none in `released`."""
    with torch.device("meta"):
        ours, theirs = Fusion(paper().network), Fusion(released().network)
    assert {m: p.in_features for m, p in ours.projection.items()} == {"clinical": 768, "radiomics": 512, "image": 2048}
    assert {m: p.in_features for m, p in theirs.projection.items()} == {"clinical": 768, "radiomics": 512, "image": 400}
    assert {p.out_features for f in (ours, theirs) for p in f.projection.values()} == {256}
    assert all(isinstance(n, nn.LayerNorm) for n in ours.projection_norm.values())
    assert all(isinstance(n, nn.Identity) for n in theirs.projection_norm.values())
