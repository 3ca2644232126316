"""Networks of `tmi train --model`: registry, interface, modalities, gradient flow, parts and temperature."""

from __future__ import annotations

import pytest
import torch

from factories.nano import nano
from factories.networks import ESTIMATORS, LABELS, SUBSETS, TORCH_MODELS, VARIANTS, configured, inputs
from tmi.toolkit.config.overrides import override
from tmi.toolkit.config.presets import paper, preset
from tmi.toolkit.config.schema import MODALITIES
from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.model_registry import MODELS, model_spec
from tmi.toolkit.models.factory import create_network, create_network_part
from tmi.toolkit.models.registry import (
    active_encoder,
    active_modalities,
    apply_temperature,
    configured_model,
    encoder_names,
    encoder_roles,
    feature_width,
)
from tmi.toolkit.models.tmi_clnet.model import TmiClnet
from tmi.training.loop.freezing import frozen_modules
from tmi.training.systems.factory import build_model, build_network, encoders, loss_function


def test_config_accepts_exactly_registered_models():
    """A config accepts the models of the registry and no other name."""
    assert [configured(f"system.name={name}").system.name for name in MODELS] == list(MODELS)
    assert set(TORCH_MODELS) | set(ESTIMATORS) == set(MODELS)
    with pytest.raises(UsageError, match="unknown model 'cnn'"):
        configured("system.name=cnn")


def test_unknown_model_lists_known_models():
    """The error for an unknown model lists every known one."""
    with pytest.raises(UsageError, match="unknown model 'cnn'") as error:
        model_spec("cnn")
    assert all(name in error.value.fix for name in MODELS)


@pytest.mark.parametrize("settings", VARIANTS, ids=" ".join)
def test_network_interface(settings):
    """Every network takes the same inputs and returns two logits with a finite loss."""
    config = configured(*settings)
    network = build_network(config, seed=1)
    output = network(**inputs())
    loss = loss_function(config)(output, LABELS, config.loss)
    assert output.logits_BK.shape == (4, 2)
    assert torch.isfinite(loss.total)
    assert set(encoders(network)) == set(encoder_names(config))


@pytest.mark.parametrize("settings", VARIANTS, ids=" ".join)
def test_seed_determines_weights(settings):
    """The seed alone determines the weights, and the global random state is restored."""
    config = configured(*settings)
    state = torch.get_rng_state()
    first, second, third = (build_network(config, seed=seed).state_dict() for seed in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)


@pytest.mark.parametrize("settings", VARIANTS, ids=" ".join)
def test_network_uses_only_its_modalities(settings):
    """The output changes exactly with the inputs of the active modalities."""
    config = configured(*settings)
    network = build_network(config, seed=1).eval()
    given = inputs()
    before = network(**given).logits_BK
    names = {"image": "ct", "clinical": "input_ids", "radiomics": "radiomics"}
    for modality, name in names.items():
        other = network(**given | {name: inputs(seed=9)[name]}).logits_BK
        assert (not torch.equal(other, before)) == (modality in active_modalities(config)), modality


@pytest.mark.parametrize("name", ["paper", "released"])
@pytest.mark.parametrize("model", TORCH_MODELS)
def test_full_size_parameter_counts(name, model):
    """Full-size networks have more than 20 M parameters; those on ResNet-50 have torchvision's count plus the head."""
    with torch.device("meta"):
        network = build_model(override(preset(name), [f"system.name={model}"]))
    parameters = sum(p.numel() for p in network.parameters())
    # torchvision's 2D ResNet-50 has 25,557,032: less its 1,000 classes, less two channels of the stem
    backbone = 25_557_032 - 2_049_000 - 2 * 64 * 49
    heads = {"resnet50": 2 * 2049, "simpleff": 8 * 2049 + 8 * (8 + 1781 + 1) + 2 * 9}
    if model in heads and name == "paper":
        assert parameters == backbone + heads[model]
    assert parameters > 20_000_000


@pytest.mark.parametrize("freeze", ["text", "radiomics"])
def test_freezing_missing_encoder_is_usage_error(freeze):
    """`train.freeze` accepts only encoders that the network has."""
    config = configured("system.name=resnet50", "system.dims=3", f'train.freeze=["{freeze}"]')
    with pytest.raises(UsageError, match=f"names {freeze}, an encoder that resnet50") as error:
        frozen_modules(build_network(config, seed=0), config)
    assert error.value.fix == "its encoders: ct"


@pytest.mark.parametrize("modalities", ["[]", '["image","image"]', '["ct"]'])
def test_invalid_modalities_are_rejected(modalities):
    """`network.modalities` takes known names, each once, at least one."""
    with pytest.raises(UsageError, match="modalities"):
        override(paper(), [f"network.modalities={modalities}"])


def without_gradient(*settings: str) -> tuple[set[str], set[str]]:
    """Parameters that get no gradient, and all; float64, no dropout, random norms."""
    config = configured(*settings)
    network = build_network(config, seed=3).double().train()
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    output = network(**inputs(dtype=torch.float64))
    loss_function(config)(output, LABELS, config.loss).total.backward()
    names = dict(network.named_parameters())
    none = {n for n, p in names.items() if p.grad is None or float(p.grad.abs().max()) < 1e-12}
    return none, set(names)


def test_parameters_without_gradient():
    """Exactly W_q and W_k of the IMA (softmax over one token is constant) and the key biases of the TCAF and of BERT
    (the softmax is invariant to a constant added to all scores of a query) get no gradient.
    """
    none, names = without_gradient()
    ima = {n for n in names if n.startswith("fusion.ima.") and n.split(".")[3] in ("query", "key")}
    tcaf = {f"fusion.tcaf.key.{m}.bias" for m in MODALITIES}
    bert = {n for n in names if n.startswith("text_encoder.") and n.endswith("key.bias")}
    assert len(ima) == 12
    assert len(bert) == nano().network.text_encoder.layers
    assert tcaf <= names
    assert none == ima | tcaf | bert


@pytest.mark.parametrize("pair", SUBSETS, ids="-".join)
def test_ablated_network_gradients(pair):
    """With fewer modalities only the key biases get no gradient."""
    none, names = without_gradient(f"network.modalities={str(pair).replace(chr(39), chr(34))}")
    attention = {f"fusion.cross_attention.key.{m}.bias" for m in pair} if len(pair) == 2 else set()
    assert none == attention | {n for n in names if n.startswith("text_encoder.") and n.endswith("key.bias")}
    assert attention <= names


def test_gradients_without_ima_and_tcaf():
    """Without the IMA and the TCAF only BERT's key biases get no gradient."""
    none, names = without_gradient("network.fusion.ima=false", "network.fusion.tcaf=false")
    assert none == {n for n in names if n.startswith("text_encoder.") and n.endswith("key.bias")}


@pytest.mark.parametrize("modalities", SUBSETS[3:], ids="-".join)
def test_pair_head_has_double_width(modalities):
    """The head of a pair takes twice the width, and there is no IMA."""
    network = build_network(configured(f"network.modalities={str(modalities).replace(chr(39), chr(34))}"), seed=0)
    lengths = []
    network.fusion.head.register_forward_pre_hook(lambda _, given: lengths.append(given[0].shape))
    network(**inputs())
    assert lengths == [(4, 1, 2 * nano().network.fusion.width)]
    assert not any("ima" in name.split(".") for name in network.state_dict())


def test_three_modalities_build_tmi_clnet():
    """All three modalities in any order build TMI-CLNet itself."""
    assert type(build_network(configured('network.modalities=["image","clinical","radiomics"]'), seed=0)) is TmiClnet


@pytest.mark.parametrize("settings", VARIANTS, ids=" ".join)
def test_parts_and_widths_match_registry(settings):
    """A network has the encoders and feature widths of the model table, and its parts hold all its tensors."""
    config = configured(*settings)
    network = create_network(config)
    roles = encoder_roles(active_modalities(config))
    assert (network.ct_encoder is not None, network.text_encoder is not None) == ("ct" in roles, "text" in roles)
    assert network.uses_radiomics == ("radiomics" in active_modalities(config))
    given = inputs()
    if network.ct_encoder is not None:
        assert network.ct_encoder.eval()(given["ct"]).shape == (4, feature_width(config, "image"))
    if network.text_encoder is not None:
        tokens = given["input_ids"], given["attention_mask"]
        assert network.text_encoder.eval()(*tokens).shape == (4, feature_width(config, "clinical"))
    encoder = getattr(network.fusion, "radiomics_encoder", None)
    assert (active_encoder(config, "radiomics") is None) == (encoder is None)
    if encoder is not None:
        assert encoder.eval()(given["radiomics"]).shape == (4, feature_width(config, "radiomics"))
    parts = {role: create_network_part(config, role) for role in (*roles, "fusion")}
    whole = {f"{'fusion' if role == 'fusion' else f'{role}_encoder'}.{name}" for role, part in parts.items()
             for name in part.state_dict()}  # fmt: skip
    assert whole == set(network.state_dict())


@pytest.mark.parametrize("settings", VARIANTS, ids=" ".join)
def test_temperature_divides_logits(settings):
    """`apply_temperature` divides the logits; a missing logit layer is damage."""
    config = configured(*settings)
    network = build_network(config, seed=4).double().eval()
    given = inputs(dtype=torch.float64)
    before = network(**given).logits_BK
    network.load_state_dict(apply_temperature(config, network.state_dict(), 2.5))
    torch.testing.assert_close(network(**given).logits_BK, before / 2.5)
    names = configured_model(config).logit_layer
    with pytest.raises(DamagedError, match="which takes the temperature, is missing"):
        apply_temperature(config, {n: t for n, t in network.state_dict().items() if n not in names}, 2.5)


def test_estimator_has_no_network():
    """Only the models that torch trains have a network; the error lists them."""
    with pytest.raises(UsageError, match="model rf has no network") as error:
        create_network(configured("system.name=rf"))
    assert error.value.fix == f"choose one of {', '.join(TORCH_MODELS)}"
