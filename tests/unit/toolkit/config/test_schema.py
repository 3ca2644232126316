"""Configuration: presets follow the specification; JSON and --set are validated strictly."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from typing import get_type_hints

import pytest

from tmi.toolkit.config.overrides import override
from tmi.toolkit.config.presets import PRESETS, paper, preset, released, tiny
from tmi.toolkit.config.schema import (
    CLASSES,
    N_RADIOMICS,
    POSITIVE,
    ClinicalConfig,
    Config,
    CtConfig,
    CtEncoderConfig,
    FusionConfig,
    LossConfig,
    TextEncoderConfig,
    TrainConfig,
)
from tmi.toolkit.errors import UsageError
from tmi.toolkit.storage.hashing import canonical_json, sha256_json
from tmi.toolkit.storage.serialization import from_json, to_json


def walk(kind: type) -> list[type]:
    """Return a config class and all config classes nested in it."""
    classes = [kind]
    for hint in get_type_hints(kind).values():
        if dataclasses.is_dataclass(hint):
            classes += walk(hint)
    return classes


def test_positive_class_and_number_of_features():
    """The positive class is `bad`; the network has 1781 radiomic features."""
    assert CLASSES == ("good", "bad")
    assert CLASSES[POSITIVE] == "bad"
    assert N_RADIOMICS == 1781


def test_paper_preset_matches_the_paper():
    """Every value that the paper states is that of the preset."""
    config = paper()
    assert config.ct == CtConfig(shape_DHW=(64, 512, 512), window_hu=(-70.0, 130.0), scale_to=(0.0, 1.0))
    assert config.ct.depth_resampling == "linear"
    assert (config.radiomics.scaling, config.radiomics.fit_on) == ("minmax", "training")
    encoder = config.network.ct_encoder
    assert (encoder.block, encoder.layers, encoder.stem_stride_DHW) == ("bottleneck", (3, 4, 6, 3), (1, 2, 2))
    assert encoder.feature_width == 2048
    text = config.network.text_encoder
    assert (text.hidden_size, text.layers, text.heads, text.intermediate_size) == (768, 12, 12, 3072)
    assert (text.vocab_size, text.pooling) == (28996, "mean")
    assert (config.network.radiomics_encoder.hidden, config.network.radiomics_encoder.out) == (1024, 512)
    fusion = config.network.fusion
    assert (fusion.width, fusion.ima_heads, fusion.layer_norm_eps) == (256, 16, 1e-5)
    assert fusion.ima
    assert fusion.tcaf
    assert fusion.projection_norm
    assert (config.network.head.blocks, config.network.head.growth) == ((6, 12, 24, 16), 32)
    assert (config.loss.sdm_scale, config.loss.tmff_lambda, config.loss.alpha) == (50.0, 0.6, 1.0)
    train = config.train
    assert (train.folds, train.epochs, train.batch_size, train.learning_rate) == (5, 300, 2, 1e-4)
    assert train.protocol == "grouped"


def test_released_preset_matches_the_released_code():
    """Every documented difference between paper and released code is in the preset."""
    config = released()
    assert config.ct.scale_to == (0.0, 255.0)
    assert config.ct.depth_resampling == "nearest"
    assert (config.radiomics.scaling, config.radiomics.fit_on) == ("zscore", "cohort")
    assert config.clinical.pad_to_max
    assert config.network.ct_encoder.feature_width == 400
    assert config.network.text_encoder.pooling == "pooler"
    assert not config.network.fusion.projection_norm
    assert (config.network.fusion.layer_norm_eps, config.network.fusion.tcaf_dropout) == (1e-12, 0.1)
    assert config.network.head.style == "released"
    assert (config.loss.sdm_scale, config.loss.tmff_lambda, config.loss.alpha) == (2.0, 0.2, 0.01)
    assert config.train.protocol == "released"


def test_tiny_preset_differs_in_sizes_only():
    """Tiny and paper differ in sizes only."""
    small, full = tiny(), paper()
    assert small.radiomics == full.radiomics
    assert small.loss == full.loss
    assert small.train.protocol == full.train.protocol
    assert small.network.text_encoder.pooling == full.network.text_encoder.pooling
    assert small.network.head.style == full.network.head.style
    assert replace(small.ct, shape_DHW=full.ct.shape_DHW) == full.ct
    fusion = replace(small.network.fusion, width=256, ima_heads=16)
    assert fusion == full.network.fusion


@pytest.mark.parametrize("name", PRESETS)
def test_preset_round_trips_through_json(name):
    """A preset is equal after serialization, with an equal digest."""
    config = preset(name)
    assert config.preset == name
    text = canonical_json(to_json(config))
    assert from_json(Config, json.loads(text)) == config
    assert sha256_json(to_json(config)) == sha256_json(json.loads(text))


def test_unknown_preset_lists_known_ones():
    """The error of an unknown preset lists the known ones."""
    with pytest.raises(UsageError, match="unknown preset 'huge'") as error:
        preset("huge")
    assert error.value.fix == "choose one of paper, released, tiny"


@pytest.mark.parametrize("kind", walk(Config), ids=lambda k: k.__name__)
def test_config_classes_are_frozen_and_documented(kind):
    """Config classes are frozen and keyword-only, and every field has a docstring."""
    import ast
    import inspect
    import textwrap

    assert kind.__dataclass_params__.frozen
    assert all(f.kw_only for f in dataclasses.fields(kind))
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            assert documented, f"{kind.__name__}.{ast.unparse(node.target)} has no docstring"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CtConfig(shape_DHW=(64, 512, 4)), "ct.shape_DHW=(64, 512, 4)"),
        (lambda: CtConfig(shape_DHW=(8, 8, 8), window_hu=(130.0, -70.0)), "ct.window_hu=(130.0, -70.0)"),
        (lambda: CtConfig(shape_DHW=(8, 8, 8), scale_to=(1.0, 1.0)), "ct.scale_to=(1.0, 1.0)"),
        (lambda: ClinicalConfig(max_length=513), "clinical.max_length=513"),
        (lambda: ClinicalConfig(max_length=7), "clinical.max_length=7"),
        (lambda: TextEncoderConfig(hidden_size=100, heads=12), "text_encoder.hidden_size=100"),
        (lambda: FusionConfig(width=100), "fusion.width=100"),
        (lambda: LossConfig(tmff_lambda=1.1), "loss.tmff_lambda=1.1"),
        (lambda: TrainConfig(folds=1), "train.folds=1"),
        (lambda: TrainConfig(epochs=0), "train.epochs=0"),
        (lambda: TrainConfig(batch_size=0), "train.batch_size=0"),
        (lambda: TrainConfig(learning_rate=0.0), "train.learning_rate=0.0"),
        (lambda: TrainConfig(validation_fraction=0.5), "train.validation_fraction=0.5"),
        (lambda: TrainConfig(freeze=("ct", "spleen")), "train.freeze names ['spleen']"),
        (lambda: replace(tiny(), clinical=ClinicalConfig(vocab_size=2000)), "exceeds network.text_encoder.vocab_size"),
    ],
)
def test_value_out_of_range_is_a_usage_error(make, message):
    """The error of an invalid value names the setting, with a fix."""
    with pytest.raises(UsageError) as error:
        make()
    assert str(error.value).startswith("config: ")
    assert message in str(error.value)
    assert error.value.fix


def test_basic_block_has_no_expansion():
    """The feature of a basic block has the channels of the last stage."""
    assert CtEncoderConfig(block="basic", planes=(8, 16, 32, 64)).feature_width == 64


def changed(path: str, value: object) -> dict[str, object]:
    """Return the JSON of the tiny preset with one value replaced, or removed if it is `...`."""
    data = to_json(tiny())
    *sections, last = path.split(".")
    node = data
    for step in sections:
        node = node[step]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("colour", 1, "config: unknown key 'colour'"),
        ("train.colour", 1, "config.train: unknown key 'colour'"),
        ("ct.shape_DHW", ..., "config.ct: "),
        ("train.epochs", "20", "config.train.epochs: '20' is not int"),
        ("train.epochs", 20.0, "config.train.epochs: 20.0 is not int"),
        ("train.epochs", True, "config.train.epochs: True is not int"),
        ("train.learning_rate", True, "config.train.learning_rate: True is not float"),
        ("train.learning_rate", "fast", "config.train.learning_rate: 'fast' is not float"),
        ("loss.alpha", float("nan"), "config.loss.alpha: nan is not float"),
        ("loss.alpha", float("inf"), "config.loss.alpha: inf is not float"),
        ("loss.alpha", 10**400, "is not float"),
        ("ct.shape_DHW", [24, 48], "config.ct.shape_DHW: [24, 48] is not tuple"),
        ("ct.shape_DHW", [24, 48, "48"], "config.ct.shape_DHW: '48' is not int"),
        ("ct.depth_resampling", "cubic", "config.ct.depth_resampling: 'cubic' is not 'linear' or 'nearest'"),
        ("network.fusion.ima", 1, "config.network.fusion.ima: 1 is not bool"),
        ("network", [], "config.network: [] is not NetworkConfig"),
        ("preset", None, "config.preset: None is not str"),
    ],
)
def test_invalid_json_is_reported_with_its_path(path, value, message):
    """The error of an invalid key or type names its path."""
    with pytest.raises(UsageError) as error:
        from_json(Config, changed(path, value))
    assert message in str(error.value)


@pytest.mark.parametrize("data", [[], "config", None, 3])
def test_json_must_be_an_object(data):
    """A list, string, number or null instead of an object is a usage error."""
    with pytest.raises(UsageError, match=r"config: .* is not an object"):
        from_json(Config, data)


def test_json_accepts_equivalent_types():
    """An int is accepted for a float, a list for a tuple, null for None."""
    assert from_json(Config, changed("loss.alpha", 2)).loss.alpha == 2.0
    assert isinstance(from_json(Config, changed("loss.alpha", 2)).loss.alpha, float)
    assert from_json(Config, changed("train.freeze", ["ct"])).train.freeze == ("ct",)
    assert from_json(Config, changed("clinical.vocab_size", None)).clinical.vocab_size is None


def test_override_changes_only_named_settings():
    """Overrides change the named settings only; the last assignment applies."""
    config = override(tiny(), ["train.epochs=3", "ct.shape_DHW=[16, 32, 32]", "clinical.rendering=flags"])
    assert config.train == replace(tiny().train, epochs=3)
    assert config.ct.shape_DHW == (16, 32, 32)
    assert config.clinical.rendering == "flags"
    assert (config.network, config.loss, config.preset) == (tiny().network, tiny().loss, "tiny")
    assert override(tiny(), []) == tiny()
    assert override(tiny(), ["train.epochs=3", "train.epochs=4"]).train.epochs == 4


@pytest.mark.parametrize(
    ("assignment", "message", "fix"),
    [
        ("train.epochs", "--set 'train.epochs' has no '='", "--set section.key=value"),
        ("train.epoch=3", "--set train.epoch: unknown setting", "epochs"),
        ("training.epochs=3", "--set training.epochs: unknown section 'training'", "train"),
        ("train.epochs.more=3", "unknown section 'epochs'", "known: "),
        ("train={}", "--set train: unknown setting", "known: "),
        ("=3", "unknown setting", "known: "),
        ("train.epochs=many", "config.train.epochs: 'many' is not int", "give int"),
        ("train.epochs=0", "config: train.epochs=0", "at least 1 epoch"),
        ("loss.alpha=NaN", "config.loss.alpha: 'NaN' is not float", "give float"),
        ("preset=paper", "the preset is not a setting", "--preset"),
    ],
)
def test_invalid_override_is_a_usage_error(assignment, message, fix):
    """An invalid assignment is a usage error with a fix."""
    with pytest.raises(UsageError) as error:
        override(tiny(), [assignment])
    assert message in str(error.value)
    assert fix in error.value.fix


def test_canonical_json_is_deterministic():
    """Equal values give equal text; NaN raises ValueError."""
    assert canonical_json({"b": 1, "a": [1, 2]}) == canonical_json({"a": [1, 2], "b": 1})
    assert canonical_json({}).endswith("\n")
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": float("nan")})
