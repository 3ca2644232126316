"""Text pre-training: synthetic records follow the schema, the loss falls, and the written folder is loaded."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from factories.tmi_command import tmi
from tmi.toolkit.clinical.rendering import render
from tmi.toolkit.clinical.schema import load_schema, parse_schema, plausible
from tmi.toolkit.config.presets import tiny
from tmi.toolkit.config.schema import ClinicalConfig, Config, TextEncoderConfig
from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.models.encoders.bert import TextEncoder
from tmi.training.pretrained.initial_weights import prepare_initialization
from tmi.training.text_pretraining.checkpoint import write_encoder
from tmi.training.text_pretraining.pretraining import PretrainConfig, PretrainedEncoder, pretrain
from tmi.training.text_pretraining.synthetic_records import sample_records, to_clinical_records, value_at_position
from tmi.training.text_pretraining.targets import regression_targets, target_columns

SHORT = {
    "schema": "tmi-clinical-schema/1",
    "name": "short",
    "version": "1",
    "sections": ["blood"],
    "fields": [
        {"name": "age", "label": "Age", "section": "blood", "unit": "years", "plausible": [0, 120]},
        {"name": "albumin", "label": "Albumin", "section": "blood", "unit": "g/L", "plausible": [10, 70],
         "reference": {"all": [40, 55]}},
        {"name": "ascites", "label": "Ascites", "section": "blood", "choices": ["no", "yes"]},
    ],
}  # fmt: skip
SCHEMA = parse_schema(SHORT, where="short")
SIZES = TextEncoderConfig(hidden_size=32, layers=2, heads=2, intermediate_size=64, vocab_size=400)
PRETRAIN_CONFIG = PretrainConfig(renderings=("values", "flags"), steps=150, batch_size=32, learning_rate=4e-3)


@pytest.fixture(scope="module")
def pretrained() -> PretrainedEncoder:
    return pretrain(SCHEMA, SIZES, PRETRAIN_CONFIG)


@pytest.fixture(scope="module")
def encoder_folder(pretrained: PretrainedEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained") / "reading"
    write_encoder(folder, pretrained, SCHEMA, PRETRAIN_CONFIG)
    return folder


def config(rendering: str = "values") -> Config:
    clinical = ClinicalConfig(rendering=rendering, vocab_size=400)  # type: ignore[arg-type]
    network = replace(tiny().network, text_encoder=replace(SIZES, dropout=0.25), modalities=("clinical",))
    return replace(tiny(), clinical=clinical, network=network)


@pytest.mark.parametrize("schema", [SCHEMA, load_schema(None)], ids=["short", "liver"])
def test_value_at_position_is_monotonic_and_covers_range(schema):
    """Values rise with the position, reach both plausible ends and are continuous at the reference range."""
    positions = np.linspace(-1.0, 1.0, 301)
    for field in schema.fields:
        if field.choices is not None:
            continue
        values = value_at_position(field, positions)
        assert (np.diff(values) >= 0).all(), field.name  # flat where the reference range begins at the lowest value
        assert field.plausible is not None
        np.testing.assert_allclose(values[[0, -1]], field.plausible, rtol=1e-9, err_msg=field.name)
        if field.reference:
            low, high = np.mean(list(field.reference.values()), axis=0)
            for step in (0.0, 1e-6):  # at the ends of the reference range, and just outside: no jump
                ends = value_at_position(field, np.array([-1 / 3 - step, 1 / 3 + step]))
                np.testing.assert_allclose(ends, [low, high], rtol=1e-6, err_msg=field.name)


def test_synthetic_records_follow_schema():
    """Sampled records have the schema's choices and plausible numbers, with some fields missing."""
    sampled = sample_records(np.random.default_rng(1), SCHEMA, 500)
    records = to_clinical_records(sampled, SCHEMA)
    for i, field in enumerate(SCHEMA.fields):
        values = [record.values[field.name] for record in records]
        assert [value is not None for value in values] == sampled.present_NF[:, i].tolist()
        if field.choices is not None:
            assert {v for v in values if v is not None} == set(field.choices)
        else:
            numbers = [v for v in values if isinstance(v, float)]
            assert len(numbers) == sampled.present_NF[:, i].sum()
            assert sum(plausible(field, v) for v in numbers) >= 0.99 * len(numbers)  # rounding may cross an end
    assert 0.10 < 1.0 - sampled.present_NF.mean() < 0.23


def test_targets_are_standardised_and_match_records():
    """Target columns have mean 0 and variance 1 and follow the positions; a missing number is 0."""
    sampled = sample_records(np.random.default_rng(2), SCHEMA, 20000)
    columns, targets = target_columns(SCHEMA), regression_targets(sampled, SCHEMA)
    assert targets.shape == (20000, len(columns.names)) == (20000, 7)
    assert np.abs(targets.mean(axis=0)).max() < 0.2
    assert np.abs(targets.std(axis=0) - 1.0).max() < 0.2
    albumin, present = targets[:, columns.names.index("albumin")], sampled.present_NF[:, 1]
    assert (albumin[~present] == 0).all()
    assert np.corrcoef(albumin[present], sampled.position_NF[present, 1])[0, 1] > 0.999


def test_pretraining_lowers_loss_and_values_are_recovered(pretrained):
    """The loss falls below half, and a linear fit recovers every field, which one step does not reach."""
    assert np.mean(pretrained.losses[-10:]) < 0.5 * np.mean(pretrained.losses[:10])
    assert min(pretrained.r2.values()) > 0.6, pretrained.r2
    untrained = pretrain(SCHEMA, SIZES, replace(PRETRAIN_CONFIG, steps=1))
    assert min(untrained.r2.values()) < 0.3


def test_features_are_standardised(pretrained):
    """Pooled features have mean 0 and variance 1 over newly sampled records."""
    records = to_clinical_records(sample_records(np.random.default_rng(3), SCHEMA, 600), SCHEMA)
    encoded = pretrained.tokenizer.encode([render(r, SCHEMA, "values") for r in records], max_length=512)
    with torch.no_grad():
        features = pretrained.encoder(
            torch.from_numpy(encoded.input_ids_BT), torch.from_numpy(encoded.attention_mask_BT)
        )
    assert float(features.mean(dim=0).abs().max()) < 0.5
    assert 0.8 < float(features.std(dim=0).mean()) < 1.2


@pytest.mark.long
def test_seed_determines_encoder():
    """The same seed gives the same encoder, tokenizer and losses; another seed gives other losses."""
    short = replace(PRETRAIN_CONFIG, steps=3)
    first, again, other = (pretrain(SCHEMA, SIZES, c) for c in (short, short, replace(short, seed=1)))
    state = again.encoder.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in first.encoder.state_dict().items())
    assert first.tokenizer.tokens == again.tokenizer.tokens
    assert first.losses == again.losses != other.losses


def test_written_folder_gives_same_features(pretrained, encoder_folder):
    """The folder is loaded without missing or dropped tensors and gives bit-identical features."""
    start = prepare_initialization(config(), ct=None, text=encoder_folder, schema=SCHEMA)
    (report,) = start.weights.reports
    assert (report.missing, report.dropped, report.adapted) == ((), (), {})
    assert start.config.network.text_encoder == replace(pretrained.config, dropout=0.25)  # the user's dropout
    assert start.tokenizer is not None
    assert start.tokenizer.tokens == pretrained.tokenizer.tokens
    encoder = TextEncoder(start.config.network.text_encoder).eval()
    encoder.load_state_dict(dict(start.weights.states["text"]), strict=True)
    text = "Age: 61.5 years. Albumin: 34 g/L. Ascites: missing. Known cirrhosis, Child-Pugh B."
    features = []
    for tokenizer, network in ((pretrained.tokenizer, pretrained.encoder), (start.tokenizer, encoder)):
        encoded = tokenizer.encode([text], max_length=512)
        assert tokenizer.tokens.index("[UNK]") not in encoded.input_ids_BT
        with torch.no_grad():
            features.append(network(*map(torch.from_numpy, (encoded.input_ids_BT, encoded.attention_mask_BT))))
    assert torch.equal(*features)
    assert "was pre-trained on synthetic records with the 3 fields of 'short'" in start.notes[0]


def test_other_rendering_or_version_is_rejected(encoder_folder, tmp_path):
    """An encoder pre-trained on another rendering, or another version of it, is a usage error."""
    prepare_initialization(config("flags"), ct=None, text=encoder_folder)
    with pytest.raises(UsageError, match="pre-trained on rendering flags, values, but the training uses pairs"):
        prepare_initialization(config("pairs"), ct=None, text=encoder_folder)
    folder = shutil.copytree(encoder_folder, tmp_path / "older")
    document = json.loads((folder / "reading.json").read_text())
    document["renderings"]["values"] = 0
    (folder / "reading.json").write_text(json.dumps(document))
    with pytest.raises(UsageError, match="were pre-trained on rendering 'values' version 0"):
        prepare_initialization(config(), ct=None, text=folder)


def test_other_schema_is_noted(encoder_folder):
    """A training with another schema gets a note with the number of new or changed fields."""
    changed = parse_schema({**SHORT, "name": "other", "fields": SHORT["fields"][1:]}, where="other")  # type: ignore[index]
    notes = prepare_initialization(config(), ct=None, text=encoder_folder, schema=changed).notes
    assert "0 of its 2 fields are new" in notes[1]
    liver = load_schema(None)
    notes = prepare_initialization(config(), ct=None, text=encoder_folder, schema=liver).notes
    assert f"{len(liver.fields)} of its {len(liver.fields)} fields are new to reading or differ" in notes[1]


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.txt", "clinical_schema.json", "config.json"])
def test_changed_file_is_detected(encoder_folder, tmp_path, name):
    """A file of the folder that was changed by one bit is a DamagedError."""
    folder = shutil.copytree(encoder_folder, tmp_path / "changed")
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(DamagedError, match=f"{name} was changed after tmi pretrain-text wrote it"):
        prepare_initialization(config(), ct=None, text=folder)


def test_command_writes_folder_and_replaces_only_its_own(tmp_path):
    """`tmi pretrain-text` writes the folder; `--force` replaces only a folder of the command."""
    (tmp_path / "short.json").write_text(json.dumps(SHORT))
    arguments = ("pretrain-text", "--preset", "tiny", "--schema", "short.json", "--steps", 2, "--batch", 8)
    outcome = tmi(*arguments, "--rendering", "values", "--rendering", "flags", "--out", "reading", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "albumin" in outcome.out
    document = json.loads((tmp_path / "reading" / "reading.json").read_text())
    assert document["renderings"] == {"values": 1, "flags": 1}
    assert document["clinical_schema"]["digest"] == SCHEMA.digest
    assert tmi(*arguments, "--out", "reading", cwd=tmp_path).code == 2
    assert tmi(*arguments, "--out", "reading", "--force", cwd=tmp_path).code == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    rejected = tmi(*arguments, "--out", "mine", "--force", cwd=tmp_path)
    assert rejected.code == 2
    assert "--force replaces only such folders" in rejected.err
    assert "unknown rendering 'prose'" in tmi(*arguments, "--rendering", "prose", "--out", "x", cwd=tmp_path).err


@pytest.mark.long
def test_comparison_with_frozen_pretrained_encoder(encoder_folder, tmp_path):
    """`tmi compare` keeps the frozen encoder's weights, records them, and rejects another folder on resuming."""
    cohort = tmp_path / "cohort"
    rows = ["case_id,patient_id,label"]
    for i in range(12):
        (cohort / f"R{i:02d}").mkdir(parents=True)
        record = {"patient_id": f"R{i:02d}", "values": {"albumin": 30 + 2 * i, "ascites": "no"}, "report": None}
        (cohort / f"R{i:02d}" / "clinical.json").write_text(json.dumps(record))
        rows.append(f"R{i:02d},R{i:02d},{'bad' if i % 2 else 'good'}")
    (cohort / "cohort.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "short.json").write_text(json.dumps(SHORT))
    arguments = ("compare", "cohort", "--table", "clinical", "--preset", "tiny", "--folds", 2, "--epochs", 1)
    arguments += ("--schema", "short.json", "--freeze", "text", "--model", "tmi-clnet", "--model", "logreg")
    outcome = tmi(*arguments, "--text-weights", encoder_folder, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    runs = tmp_path / "comparison" / "runs"
    assert "text" in json.loads((runs / "tmi-clnet" / "pretrained.json").read_text())
    assert not (runs / "logreg" / "pretrained.json").exists()
    given = load_file(encoder_folder / "model.safetensors")
    trained = load_file(runs / "tmi-clnet" / "fold1" / "model.safetensors")
    assert all(torch.equal(trained[f"text_encoder.bert.{name}"], tensor) for name, tensor in given.items())
    report = (tmp_path / "comparison" / "tables.md").read_text()
    assert "--text-weights reading" in report
    assert "--freeze text" in report

    assert report.startswith("# Clinical record alone")
    audited = tmi("audit", runs / "tmi-clnet", "cohort", cwd=tmp_path)
    assert audited.code == 0, audited.out
    assert "none of the 12 cases has a CT" in audited.out

    other = tmp_path / "other"
    one_step = replace(PRETRAIN_CONFIG, renderings=("values",), steps=1)
    write_encoder(other, pretrain(SCHEMA, SIZES, one_step), SCHEMA, one_step)
    rejected = tmi(*arguments, "--text-weights", other, cwd=tmp_path)
    assert rejected.code == 2
    assert "other" in rejected.err
    mismatched = tmi(*arguments, "--model", "flags", "--text-weights", other, "--out", "new", cwd=tmp_path)
    assert mismatched.code == 2
    assert "pre-trained on rendering values, but the training uses flags" in mismatched.err
    assert not (tmp_path / "new").exists()
