"""The systems behind `tmi train --model`: one interface, what each sees, its formulas, what is fitted on what."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from factories.fold_arrays import IDS, SPLIT, changed, make_arrays
from factories.nano import nano
from tmi.toolkit.config.baseline_schema import ModelName
from tmi.toolkit.config.overrides import override
from tmi.toolkit.config.presets import paper, preset
from tmi.toolkit.config.schema import MODALITIES, Config
from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.models.baselines.hfbsurv import FactorisedBilinear
from tmi.toolkit.models.baselines.mmd import MmdFusion, kept_modalities
from tmi.toolkit.models.factory import create_network, create_network_part
from tmi.toolkit.models.multimodal import MultimodalNetwork
from tmi.toolkit.models.registry import (
    LOGIT_LAYERS,
    TEMPERATURE_BUFFER,
    active_modalities,
    apply_temperature,
    ct_feature_width,
    encoder_roles,
)
from tmi.toolkit.models.registry import NEURAL_MODELS as WITH_A_NETWORK
from tmi.toolkit.models.tmi_clnet.model import TmiClnet
from tmi.toolkit.run_folder import FoldFolder
from tmi.training.loop.fold_training import train_fold
from tmi.training.loop.freezing import frozen_modules
from tmi.training.systems import sklearn_arrays as estimator_arrays
from tmi.training.systems.factory import build_model, build_network, encoders, loss_function
from tmi.training.systems.radiomics_pipeline import LassoSelection, fit
from tmi.training.systems.registry import SYSTEMS, encoder_names, system_spec

NEURAL_MODELS = tuple(name for name, spec in SYSTEMS.items() if spec.backend == "torch")
ESTIMATORS = tuple(name for name, spec in SYSTEMS.items() if spec.backend == "sklearn")
SUBSETS = [
    ["image"],
    ["clinical"],
    ["radiomics"],
    ["image", "clinical"],
    ["clinical", "radiomics"],
    ["image", "radiomics"],
]
VARIANTS = [
    *((f"system.name={name}",) for name in NEURAL_MODELS),
    ("system.name=resnet50", "system.dims=3"),
    ("system.name=vit", "system.dims=3"),
    *((f"network.modalities={str(s).replace(chr(39), chr(34))}",) for s in SUBSETS),
]
"""Settings of everything that is trained by gradient steps."""


def configured(*settings: str) -> Config:
    return override(nano(), settings)


def inputs(batch: int = 4, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "ct": torch.rand(batch, 1, *nano().ct.shape_DHW, generator=generator, dtype=dtype),
        "input_ids": torch.randint(5, 200, (batch, 12), generator=generator),
        "attention_mask": torch.ones(batch, 12, dtype=torch.long),
        "radiomics": torch.rand(batch, 1781, generator=generator, dtype=dtype) * 2 - 1,
    }


LABELS = torch.tensor([0, 1, 1, 0])


def test_the_table_of_systems_is_the_names_that_a_config_takes():
    assert tuple(SYSTEMS) == get_args(ModelName)
    assert set(NEURAL_MODELS) | set(ESTIMATORS) == set(SYSTEMS)


def test_an_unknown_model_is_told_with_the_known_ones():
    with pytest.raises(UsageError, match="unknown model 'cnn'") as error:
        system_spec("cnn")
    assert all(name in error.value.fix for name in SYSTEMS)


@pytest.mark.parametrize("settings", VARIANTS, ids=" ".join)
def test_every_network_takes_the_same_inputs_and_gives_two_logits_and_a_loss(settings):
    config = configured(*settings)
    network = build_network(config, seed=1)
    output = network(**inputs())
    loss = loss_function(config)(output, LABELS, config.loss)
    assert output.logits_BK.shape == (4, 2)
    assert torch.isfinite(loss.total)
    assert set(encoders(network)) == set(encoder_names(config))


@pytest.mark.parametrize("settings", VARIANTS, ids=" ".join)
def test_the_seed_alone_fixes_the_weights_of_every_network(settings):
    config = configured(*settings)
    state = torch.get_rng_state()
    first, second, third = (build_network(config, seed=seed).state_dict() for seed in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)


@pytest.mark.parametrize("settings", VARIANTS, ids=" ".join)
def test_a_network_looks_at_its_modalities_and_at_nothing_else(settings):
    config = configured(*settings)
    network = build_network(config, seed=1).eval()
    given = inputs()
    before = network(**given).logits_BK
    names = {"image": "ct", "clinical": "input_ids", "radiomics": "radiomics"}
    for modality, name in names.items():
        other = network(**given | {name: inputs(seed=9)[name]}).logits_BK
        assert (not torch.equal(other, before)) == (modality in active_modalities(config)), modality


@pytest.mark.parametrize("name", ["paper", "released"])
@pytest.mark.parametrize("model", NEURAL_MODELS)
def test_every_network_builds_at_its_full_size(name, model):
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
def test_freezing_an_encoder_that_the_system_lacks_is_wrong_usage(freeze):
    config = configured("system.name=resnet50", "system.dims=3", f'train.freeze=["{freeze}"]')
    with pytest.raises(UsageError, match=f"names {freeze}, an encoder that resnet50") as error:
        frozen_modules(build_network(config, seed=0), config)
    assert error.value.fix == "its encoders: ct"


@pytest.mark.parametrize("modalities", ["[]", '["image","image"]', '["ct"]'])
def test_modalities_are_named_once_and_are_known(modalities):
    with pytest.raises(UsageError, match="modalities"):
        override(paper(), [f"network.modalities={modalities}"])


# Gradient flow


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


def test_exactly_the_parameters_that_cannot_matter_get_no_gradient():
    """W_q and W_k of the IMA (softmax over one token is constant) and every bias of a key, in the TCAF and in BERT
    (it adds the same to all scores of a query, which the softmax takes away).
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
def test_with_fewer_modalities_every_parameter_but_the_biases_of_keys_gets_a_gradient(pair):
    none, names = without_gradient(f"network.modalities={str(pair).replace(chr(39), chr(34))}")
    attention = {f"fusion.cross_attention.key.{m}.bias" for m in pair} if len(pair) == 2 else set()
    assert none == attention | {n for n in names if n.startswith("text_encoder.") and n.endswith("key.bias")}
    assert attention <= names


def test_without_the_ima_and_the_tcaf_only_berts_biases_of_keys_get_no_gradient():
    none, names = without_gradient("network.fusion.ima=false", "network.fusion.tcaf=false")
    assert none == {n for n in names if n.startswith("text_encoder.") and n.endswith("key.bias")}


# The networks' own formulas


@pytest.mark.parametrize("modalities", SUBSETS[3:], ids="-".join)
def test_the_head_of_a_pair_gets_twice_the_width_and_there_is_no_ima(modalities):
    network = build_network(configured(f"network.modalities={str(modalities).replace(chr(39), chr(34))}"), seed=0)
    lengths = []
    network.fusion.head.register_forward_pre_hook(lambda _, given: lengths.append(given[0].shape))
    network(**inputs())
    assert lengths == [(4, 1, 2 * nano().network.fusion.width)]
    assert not any("ima" in name.split(".") for name in network.state_dict())


def test_all_three_modalities_are_the_network_of_the_paper():
    assert type(build_network(configured('network.modalities=["image","clinical","radiomics"]'), seed=0)) is TmiClnet


def test_simpleff_averages_the_probabilities_of_its_slices():
    config = configured("system.name=simpleff", "system.simpleff.slices_of_64=[8,40]")
    network = build_network(config, seed=1).eval()
    with torch.no_grad():
        network.fusion.out.weight.mul_(40)  # far from linear: the mean of the logits is another answer
        network.ct_encoder.reduce.weight.mul_(40)
    assert network.ct_encoder.slices == [1, 5]
    given = inputs()
    one_by_one = []
    for number in (1, 5):
        network.ct_encoder.slices = [number, number]
        one_by_one.append(network(**given).logits_BK.softmax(dim=1))
    network.ct_encoder.slices = [1, 5]
    torch.testing.assert_close(network(**given).logits_BK.exp(), (one_by_one[0] + one_by_one[1]) / 2)


def test_factorised_bilinear_pooling_is_its_formula():
    torch.manual_seed(0)
    module = FactorisedBilinear(6, pooled=3, rank=4, dropout=0.0).double()
    a, b = torch.randn(2, 6, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    product = (module.left(a) * module.right(b)).detach().numpy()
    sums = np.array([[product[i, 4 * k : 4 * k + 4].sum() for k in range(3)] for i in range(2)])
    rooted = np.sign(sums) * np.sqrt(np.abs(sums))
    expected = rooted / np.linalg.norm(rooted, axis=1, keepdims=True)
    np.testing.assert_allclose(module(a, b).detach().numpy(), expected, rtol=1e-6)


def test_vit_refuses_patches_that_do_not_divide_the_slice():
    with pytest.raises(UsageError, match="patches of \\(5, 5\\) do not divide an input of \\(16, 16\\)"):
        build_network(configured("system.name=vit", "system.vit.patch_DHW=[4,5,5]"), seed=0)


# mmd


def mmd() -> MultimodalNetwork:
    network = build_network(configured("system.name=mmd"), seed=2)
    assert isinstance(network, MultimodalNetwork)
    assert isinstance(network.fusion, MmdFusion)
    return network


@pytest.mark.parametrize("there", SUBSETS, ids="-".join)
def test_mmd_predicts_with_any_subset_and_what_is_missing_may_be_anything(there):
    network = mmd().eval()
    available = torch.tensor([[m in there for m in MODALITIES]]).expand(4, -1)
    given = inputs()
    spoilt = {
        "image": ("ct", torch.full_like(given["ct"], torch.nan)),
        "clinical": ("input_ids", given["input_ids"] * 0),
        "radiomics": ("radiomics", torch.full_like(given["radiomics"], torch.nan)),
    }
    missing = dict(spoilt[m] for m in MODALITIES if m not in there)
    before = network(**given, available_BM=available)
    after = network(**given | missing, available_BM=available)
    assert torch.isfinite(before.logits_BK).all()
    torch.testing.assert_close(after.logits_BK, before.logits_BK)
    torch.testing.assert_close(after.reconstruction, before.reconstruction)
    assert not torch.allclose(before.logits_BK, network(**given).logits_BK)


def test_mmd_with_all_modalities_named_is_mmd_with_none_named():
    network = mmd().eval()
    named = network(**inputs(), available_BM=torch.ones(4, 3, dtype=torch.bool))
    torch.testing.assert_close(named.logits_BK, network(**inputs()).logits_BK)


def test_mmd_refuses_a_case_without_any_modality():
    with pytest.raises(ValueError, match="no modality"):
        mmd()(**inputs(), available_BM=torch.tensor([[True, True, True]] * 3 + [[False] * 3]))


def test_mmd_keeps_each_available_modality_half_the_time_and_at_least_one_always():
    torch.manual_seed(0)
    available = torch.tensor([[True, True, True], [True, False, True], [False, True, False]]).repeat(4000, 1)
    kept = kept_modalities(available, 0.5)
    assert not (kept & ~available).any()
    assert kept.any(dim=1).all()
    three = kept[available.all(dim=1)].float()
    # kept by the coin, or as the one left when the coin keeps none: 1/2 + 1/8 * 1/3
    assert three.mean(dim=0).numpy() == pytest.approx(0.5 + 1 / 24, abs=0.03)


def test_the_reconstruction_moves_the_decoders_and_takes_the_embeddings_as_they_are():
    """Its gradient reaches an embedding through the fused feature alone: without that, not at all."""
    network = mmd().eval()
    network(**inputs()).reconstruction.backward()
    assert all(float(p.grad.abs().max()) > 0 for p in network.fusion.decode.parameters())
    network.zero_grad()
    for towards in network.fusion.towards.values():
        towards.register_forward_hook(lambda _, __, fused: fused.detach())
    network(**inputs()).reconstruction.backward()
    assert all(p.grad is None or not p.grad.any() for p in network.fusion.embed.parameters())


# Estimators


def at_the_thresholds(stored: dict[str, np.ndarray], case: np.ndarray) -> list[np.ndarray]:
    """Cases a hair above a tree's threshold, where single precision decides otherwise than double; none of an svm."""
    cases = []
    for node in np.flatnonzero(stored["tree.leaf"] == 0)[:40] if "tree.leaf" in stored else ():
        column = stored["selected"][stored["tree.feature"][node]]
        above = case.copy()
        above[column] = (stored["tree.threshold"][node] + 1e-10 - stored["shift"][column]) / stored["scale"][column]
        cases.append(above[None])
    return cases


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_stored_arrays_predict_what_scikit_learn_does(tmp_path, name, seed):
    random = np.random.default_rng(seed)
    train, labels = make_arrays((8, 16, 16), seed=seed).radiomics_NF, np.arange(len(IDS)) % 2
    model = fit(build_model(configured(f"system.name={name}")), train, labels)
    estimator_arrays.save(estimator_arrays.as_arrays(model), tmp_path / "model.safetensors")
    stored = estimator_arrays.load(tmp_path / "model.safetensors")
    cases = random.normal(0, 30, (50, 1781))  # beyond the fitted range too
    cases[random.uniform(size=cases.shape) < 0.1] = np.nan
    cases = np.concatenate([train, cases, *at_the_thresholds(stored, train[0])])
    theirs = model.predict_proba(cases)[:, 1]
    np.testing.assert_allclose(estimator_arrays.probability(stored, cases), theirs, rtol=0, atol=1e-12)
    assert np.ptp(theirs) > 0.1
    with safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
        assert all(file.get_tensor(key).dtype.kind in "fi" for key in sorted(file.keys()))


def test_a_file_of_arrays_that_is_none_is_damage(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(DamagedError, match="cannot be read"):
        estimator_arrays.load(tmp_path / "model.safetensors")


class KeepsNothing:
    """A LASSO whose cross-validation prefers the mean."""

    def __init__(self, **_: object) -> None:
        self.coef_ = np.zeros(30)

    def fit(self, X, y):
        return self


def test_the_lasso_keeps_a_feature_that_tells_and_never_none(monkeypatch):
    random = np.random.default_rng(0)
    labels = np.arange(40) % 2
    noise = random.normal(size=(40, 30))
    told = noise.copy()
    told[:, 11] = labels + random.normal(0, 0.1, 40)
    assert LassoSelection().fit(told, labels).get_support()[11]
    monkeypatch.setattr("tmi.training.systems.radiomics_pipeline.LassoCV", KeepsNothing)
    np.testing.assert_array_equal(np.flatnonzero(LassoSelection().fit(told, labels).get_support()), [11])


def train(folder: Path, name: str, arrays: object) -> FoldFolder:
    files = FoldFolder(folder=folder, fold=SPLIT.fold)
    folder.mkdir()
    config = configured(f"system.name={name}")
    train_fold(arrays, SPLIT, config, files, tokenizer=None, accelerator="cpu", epoch_callback=lambda *_: None)  # type: ignore[arg-type]
    return files


@pytest.mark.parametrize("name", ESTIMATORS)
def test_everything_an_estimator_fits_is_fitted_on_the_training_part_alone(tmp_path, name):
    arrays = make_arrays(nano().ct.shape_DHW)
    plain = train(tmp_path / "plain", name, arrays)
    for part, same in ((SPLIT.test, True), (SPLIT.validation, True), (SPLIT.train[:1], False)):
        other = train(tmp_path / part[0], name, changed(arrays, part))
        assert (other.model.read_bytes() == plain.model.read_bytes()) == same, part[0]
    assert {p.name for p in plain.folder.iterdir()} == {
        "history.csv", "metrics.json", "model.safetensors", "predictions.csv", "scaler.json", "tokenizer.json",
        "validation.csv",
    }  # fmt: skip


# The parts that a bundle is made of


@pytest.mark.parametrize("settings", VARIANTS, ids=" ".join)
def test_a_network_has_the_parts_and_widths_that_the_table_says(settings):
    config = configured(*settings)
    network = create_network(config)
    roles = encoder_roles(active_modalities(config))
    assert (network.ct_encoder is not None, network.text_encoder is not None) == ("ct" in roles, "text" in roles)
    assert network.uses_radiomics == ("radiomics" in active_modalities(config))
    if network.ct_encoder is not None:
        assert network.ct_encoder.eval()(inputs()["ct"]).shape == (4, ct_feature_width(config))
    parts = {role: create_network_part(config, role) for role in (*roles, "fusion")}
    whole = {f"{'fusion' if role == 'fusion' else f'{role}_encoder'}.{name}" for role, part in parts.items()
             for name in part.state_dict()}  # fmt: skip
    assert whole == set(network.state_dict())


@pytest.mark.parametrize("settings", VARIANTS, ids=" ".join)
def test_a_calibrated_networks_logits_are_its_logits_divided_by_the_temperature(settings):
    config = configured(*settings)
    network = build_network(config, seed=4).double().eval()
    given = inputs(dtype=torch.float64)
    before = network(**given).logits_BK
    network.load_state_dict(apply_temperature(config, network.state_dict(), 2.5))
    torch.testing.assert_close(network(**given).logits_BK, before / 2.5)
    names = LOGIT_LAYERS.get(config.system.name, (TEMPERATURE_BUFFER,))
    with pytest.raises(DamagedError, match="which takes the temperature, is missing"):
        apply_temperature(config, {n: t for n, t in network.state_dict().items() if n not in names}, 2.5)


def test_the_systems_with_a_network_are_those_that_are_trained_by_gradient_steps():
    assert set(WITH_A_NETWORK) == set(NEURAL_MODELS)
    with pytest.raises(UsageError, match="model rf has no network"):
        create_network(configured("system.name=rf"))
