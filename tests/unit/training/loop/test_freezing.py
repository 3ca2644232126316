"""Frozen parts keep their weights bit for bit, and the output of a frozen encoder is computed once for each case."""

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
def test_frozen_part_keeps_weights_and_statistics(config, tmp_path, name):
    """Training leaves weights and BatchNorm statistics of a frozen part unchanged and changes the other parts."""
    frozen, trained = PARTS[name]
    after = load_file(train_small(tmp_path / "fold1", make_arrays(), freezing(config, name)).model)
    before = build(config.network, seed=config.train.seed + SPLIT.fold).state_dict()
    for key in before:
        if key.startswith(frozen):
            assert torch.equal(before[key], after[key]), key
    for prefix in (*trained, "fusion.head."):
        assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith(prefix)), prefix


@pytest.mark.parametrize("name", PARTS)
def test_frozen_parameters_are_not_optimised(config, name):
    """Parameters of a frozen part require no gradient and are not given to the optimiser."""
    module = FoldModule(freezing(config, name), fold=0)
    frozen = {id(p) for part in frozen_modules(module.network, module.config) for p in part.parameters()}
    assert frozen
    assert all(p.requires_grad == (id(p) not in frozen) for p in module.network.parameters())
    optimised = {id(p) for group in module.configure_optimizers().param_groups for p in group["params"]}
    assert not optimised & frozen


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (("ct:layer5",), "freeze names"),
        (("radiomics:1",), "freeze names"),
        (("heart",), "freeze names"),
        (("ct", "ct:stem"), "freeze="),
    ],
)
def test_unknown_freeze_entry_is_rejected(config, names, text):
    """A name that is no encoder or part, and a part beside its whole encoder, raise a `UsageError`."""
    with pytest.raises(UsageError, match=text):
        freezing(config, *names)


def test_too_many_frozen_layers_are_rejected(config):
    """Freezing more text layers than exist raises a `UsageError`."""
    with pytest.raises(UsageError, match="names text:3, but the text encoder has 2 layers"):
        FoldModule(freezing(config, "text:3"), fold=0)


# Cached outputs


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Number of cases that each encoder has computed."""
    calls: Counter[str] = Counter()
    for name, kind in (("ct", CtEncoder), ("text", TextEncoder)):
        original = kind.forward

        def forward(self, x, *more, name=name, original=original):
            calls[name] += len(x)
            return original(self, x, *more)

        monkeypatch.setattr(kind, "forward", forward)
    return calls


def test_cached_encoder_runs_once_per_case(config, tmp_path, counted):
    """A frozen encoder computes each case once, and the weights match those of a run without the cache."""
    frozen = freezing(config, "ct", "text", epochs=4)
    cached = load_file(train_small(tmp_path / "cached" / "fold1", make_arrays(), frozen).model)
    once = len(SPLIT.train) + len(SPLIT.validation)
    final = len(SPLIT.validation) + len(SPLIT.test)  # the saved model is evaluated without the cache
    assert counted == {"ct": once + final, "text": once + final}
    counted.clear()
    without_cache = replace(frozen, train=replace(frozen.train, cache_frozen=False))
    uncached = load_file(train_small(tmp_path / "uncached" / "fold1", make_arrays(), without_cache).model)
    assert counted["ct"] == 4 * once + final
    for name, tensor in uncached.items():
        if ".tcaf.key." in name and name.endswith(".bias"):
            continue  # shifts all scores of a softmax equally: its gradient is rounding noise, which Adam amplifies
        torch.testing.assert_close(cached[name], tensor, rtol=2e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_folds_with_same_weights_share_outputs(config, tmp_path, counted):
    """Folds that start from the same encoder weights share the cached outputs."""
    frozen = freezing(config, "ct")
    state = build(config.network, seed=9).ct_encoder.state_dict()
    initial, features = InitialWeights(states={"ct": state}), FrozenFeatures()
    other = replace(SPLIT, fold=0, train=SPLIT.train[1:], validation=(*SPLIT.validation, SPLIT.train[0]))
    for number, split in ((1, SPLIT), (0, other)):
        folder = tmp_path / f"fold{number}"
        train_small(folder, make_arrays(), frozen, split, initial=initial, features=features)
    final = len(SPLIT.validation) + len(other.validation) + 2 * len(SPLIT.test)
    assert counted["ct"] == len(SPLIT.train) + len(SPLIT.validation) + final


def test_cache_key_depends_on_weights_and_vocabulary(config):
    """Other weights and another vocabulary give other cache keys."""
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


def test_augmented_ct_and_partial_freeze_are_not_cached(config):
    """Only fully frozen encoders with unaugmented inputs are cached."""
    network = build(config.network, seed=0)
    frozen = freezing(config, "ct", "text:1")
    assert cacheable_encoders(network, frozen) == ("ct",)
    augmented = replace(frozen, augmentation=replace(config.augmentation, noise=0.1))
    assert cacheable_encoders(network, augmented) == ()
    assert cacheable_encoders(network, freezing(config, "ct", "text", cache_frozen=False)) == ()
