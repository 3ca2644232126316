"""What is frozen stays to the bit, whole or in part, and a frozen encoder's output is computed once a case."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from factories.small_fold import SPLIT, make_arrays, small_config, train_small
from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import UsageError
from tmi.toolkit.models.encoders.bert import TextEncoder
from tmi.toolkit.models.encoders.resnet3d import CtEncoder
from tmi.toolkit.models.tmi_clnet.model import build
from tmi.training.loop.freezing import FrozenFeatures, cacheable_encoders, encoder_cache_key, frozen_modules
from tmi.training.loop.lightning_module import FoldModule
from tmi.training.pretrained.initial_weights import InitialWeights


@pytest.fixture(scope="module")
def config(micro_config: Config) -> Config:
    small = small_config(micro_config)
    text = replace(small.network.text_encoder, layers=2)
    return replace(small, network=replace(small.network, text_encoder=text), train=replace(small.train, epochs=2))


def freezing(config: Config, *names: str, **more: object) -> Config:
    return replace(config, train=replace(config.train, freeze=names, **more))


PARTS = {
    "ct": (("ct_encoder.",), ()),
    "ct:stem": (("ct_encoder.backbone.conv1.", "ct_encoder.backbone.bn1."), ("ct_encoder.backbone.layer1.",)),
    "ct:layer2": (
        ("ct_encoder.backbone.conv1.", "ct_encoder.backbone.layer1.", "ct_encoder.backbone.layer2."),
        ("ct_encoder.backbone.layer3.", "ct_encoder.backbone.layer4."),
    ),
    "text": (("text_encoder.",), ()),
    "text:0": (("text_encoder.bert.embeddings.",), ("text_encoder.bert.encoder.layer.0.",)),
    "text:1": (
        ("text_encoder.bert.embeddings.", "text_encoder.bert.encoder.layer.0."),
        ("text_encoder.bert.encoder.layer.1.",),
    ),
    "radiomics": (("fusion.radiomics_encoder.",), ()),
}


@pytest.mark.parametrize("name", PARTS)
def test_what_is_frozen_ends_as_it_began_statistics_included_and_the_rest_does_not(config, tmp_path, name):
    still, moving = PARTS[name]
    after = load_file(train_small(tmp_path / "fold1", make_arrays(), freezing(config, name)).model)
    before = build(config.network, seed=config.train.seed + SPLIT.fold).state_dict()
    for key in before:
        if key.startswith(still):
            assert torch.equal(before[key], after[key]), key
    for prefix in (*moving, "fusion.head."):
        assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith(prefix)), prefix


@pytest.mark.parametrize("name", PARTS)
def test_a_frozen_parts_parameters_get_no_gradient_and_are_not_the_optimisers(config, name):
    module = FoldModule(freezing(config, name), fold=0)
    frozen = {id(p) for part in frozen_modules(module.network, module.config) for p in part.parameters()}
    assert frozen
    assert all(p.requires_grad == (id(p) not in frozen) for p in module.network.parameters())
    held = {id(p) for group in module.configure_optimizers().param_groups for p in group["params"]}
    assert not held & frozen


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (("ct:layer5",), "freeze names"),
        (("radiomics:1",), "freeze names"),
        (("heart",), "freeze names"),
        (("ct", "ct:stem"), "freeze="),
    ],
)
def test_a_name_that_is_no_part_is_refused(config, names, text):
    with pytest.raises(UsageError, match=text):
        freezing(config, *names)


def test_more_layers_than_there_are_is_refused(config):
    with pytest.raises(UsageError, match="names text:3, and the text encoder has 2 layers"):
        FoldModule(freezing(config, "text:3"), fold=0)


# Outputs computed once


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many cases each encoder computed."""
    calls: Counter[str] = Counter()
    for name, kind in (("ct", CtEncoder), ("text", TextEncoder)):
        real = kind.forward

        def forward(self, x, *more, name=name, real=real):
            calls[name] += len(x)
            return real(self, x, *more)

        monkeypatch.setattr(kind, "forward", forward)
    return calls


def test_a_frozen_encoder_computes_each_case_once_and_the_weights_are_those_without_the_cache(
    config, tmp_path, counted
):
    frozen = freezing(config, "ct", "text", epochs=4)
    cached = load_file(train_small(tmp_path / "cached" / "fold1", make_arrays(), frozen).model)
    once = len(SPLIT.train) + len(SPLIT.validation)
    final = len(SPLIT.validation) + len(SPLIT.test)  # the saved model is asked anew, without any cache
    assert counted == {"ct": once + final, "text": once + final}
    counted.clear()
    plain = replace(frozen, train=replace(frozen.train, cache_frozen=False))
    uncached = load_file(train_small(tmp_path / "plain" / "fold1", make_arrays(), plain).model)
    assert counted["ct"] == 4 * once + final
    for name, tensor in uncached.items():
        if ".tcaf.key." in name and name.endswith(".bias"):
            continue  # adds the same to every score of a softmax: its gradient is rounding, which Adam blows up
        torch.testing.assert_close(cached[name], tensor, rtol=2e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_folds_that_start_from_the_same_weights_share_the_outputs(config, tmp_path, counted):
    frozen = freezing(config, "ct")
    state = build(config.network, seed=9).ct_encoder.state_dict()
    initial, features = InitialWeights(states={"ct": state}), FrozenFeatures()
    other = replace(SPLIT, fold=0, train=SPLIT.train[1:], validation=(*SPLIT.validation, SPLIT.train[0]))
    for number, split in ((1, SPLIT), (0, other)):
        folder = tmp_path / f"fold{number}"
        train_small(folder, make_arrays(), frozen, split, initial=initial, features=features)
    final = len(SPLIT.validation) + len(other.validation) + 2 * len(SPLIT.test)
    assert counted["ct"] == len(SPLIT.train) + len(SPLIT.validation) + final


def test_other_weights_and_another_vocabulary_are_other_outputs(config):
    one, two = (build(config.network, seed=seed).text_encoder for seed in (1, 2))
    assert encoder_cache_key(one, "text", "a") == encoder_cache_key(one, "text", "a")
    assert (
        len(
            {
                encoder_cache_key(one, "text", "a"),
                encoder_cache_key(two, "text", "a"),
                encoder_cache_key(one, "text", "b"),
            }
        )
        == 3
    )


def test_an_augmented_ct_and_a_part_are_not_cached(config):
    network = build(config.network, seed=0)
    frozen = freezing(config, "ct", "text:1")
    assert cacheable_encoders(network, frozen) == ("ct",)
    augmented = replace(frozen, augmentation=replace(config.augmentation, noise=0.1))
    assert cacheable_encoders(network, augmented) == ()
    assert cacheable_encoders(network, freezing(config, "ct", "text", cache_frozen=False)) == ()
