"""An encoder is taught to read on drawn records: they keep to the schema, the reading comes, the folder is taken."""

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
LESSON = PretrainConfig(renderings=("values", "flags"), steps=150, batch_size=32, learning_rate=4e-3)


@pytest.fixture(scope="module")
def taught() -> PretrainedEncoder:
    return pretrain(SCHEMA, SIZES, LESSON)


@pytest.fixture(scope="module")
def reading(taught: PretrainedEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("taught") / "reading"
    write_encoder(folder, taught, SCHEMA, LESSON)
    return folder


def config(rendering: str = "values") -> Config:
    clinical = ClinicalConfig(rendering=rendering, vocab_size=400)  # type: ignore[arg-type]
    network = replace(tiny().network, text_encoder=replace(SIZES, dropout=0.25), modalities=("clinical",))
    return replace(tiny(), clinical=clinical, network=network)


@pytest.mark.parametrize("schema", [SCHEMA, load_schema(None)], ids=["short", "liver"])
def test_drawn_values_are_plausible_rise_with_their_place_and_reach_both_ends(schema):
    place = np.linspace(-1.0, 1.0, 301)
    for field in schema.fields:
        if field.choices is not None:
            continue
        values = value_at_position(field, place)
        assert (np.diff(values) >= 0).all(), field.name  # flat where the reference range begins at the lowest value
        assert field.plausible is not None
        np.testing.assert_allclose(values[[0, -1]], field.plausible, rtol=1e-9, err_msg=field.name)
        if field.reference:
            low, high = np.mean(list(field.reference.values()), axis=0)
            for beside in (0.0, 1e-6):  # at the ends of the reference range, and just outside: no jump
                ends = value_at_position(field, np.array([-1 / 3 - beside, 1 / 3 + beside]))
                np.testing.assert_allclose(ends, [low, high], rtol=1e-6, err_msg=field.name)


def test_drawn_records_are_records_of_the_schema_with_fields_missing():
    drawn = sample_records(np.random.default_rng(1), SCHEMA, 500)
    found = to_clinical_records(drawn, SCHEMA)
    for i, field in enumerate(SCHEMA.fields):
        values = [record.values[field.name] for record in found]
        assert [value is not None for value in values] == drawn.present_NF[:, i].tolist()
        if field.choices is not None:
            assert {v for v in values if v is not None} == set(field.choices)
        else:
            numbers = [v for v in values if isinstance(v, float)]
            assert len(numbers) == drawn.present_NF[:, i].sum()
            assert sum(plausible(field, v) for v in numbers) >= 0.99 * len(numbers)  # rounding may cross an end
    assert 0.10 < 1.0 - drawn.present_NF.mean() < 0.23


def test_targets_have_mean_0_and_variance_1_and_say_what_the_record_says():
    drawn = sample_records(np.random.default_rng(2), SCHEMA, 20000)
    what, wanted = target_columns(SCHEMA), regression_targets(drawn, SCHEMA)
    assert wanted.shape == (20000, len(what.names)) == (20000, 7)
    assert np.abs(wanted.mean(axis=0)).max() < 0.2
    assert np.abs(wanted.std(axis=0) - 1.0).max() < 0.2
    albumin = wanted[:, what.names.index("albumin")]
    assert (albumin[~drawn.present_NF[:, 1]] == 0).all()
    assert np.corrcoef(albumin[drawn.present_NF[:, 1]], drawn.position_NF[drawn.present_NF[:, 1], 1])[0, 1] > 0.999


def test_teaching_lowers_the_loss_and_a_probe_recovers_values_from_the_feature(taught):
    assert np.mean(taught.losses[-10:]) < 0.5 * np.mean(taught.losses[:10])
    assert min(taught.r2.values()) > 0.6, taught.r2
    untaught = pretrain(SCHEMA, SIZES, replace(LESSON, steps=1))
    assert min(untaught.r2.values()) < 0.3


def test_features_have_mean_0_and_variance_1_over_drawn_records(taught):
    found = to_clinical_records(sample_records(np.random.default_rng(3), SCHEMA, 600), SCHEMA)
    encoded = taught.tokenizer.encode([render(r, SCHEMA, "values") for r in found], max_length=512)
    with torch.no_grad():
        features = taught.encoder(torch.from_numpy(encoded.input_ids_BT), torch.from_numpy(encoded.attention_mask_BT))
    assert float(features.mean(dim=0).abs().max()) < 0.5
    assert 0.8 < float(features.std(dim=0).mean()) < 1.2


def test_the_same_seed_gives_the_same_encoder_another_seed_another():
    short = replace(LESSON, steps=3)
    first, again, other = (pretrain(SCHEMA, SIZES, lesson) for lesson in (short, short, replace(short, seed=1)))
    state = again.encoder.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in first.encoder.state_dict().items())
    assert first.tokenizer.tokens == again.tokenizer.tokens
    assert first.losses == again.losses != other.losses


def test_the_folder_is_taken_whole_and_gives_the_same_features(taught, reading):
    start = prepare_initialization(config(), ct=None, text=reading, schema=SCHEMA)
    (report,) = start.weights.reports
    assert (report.missing, report.dropped, report.adapted) == ((), (), {})
    assert start.config.network.text_encoder == replace(taught.config, dropout=0.25)  # the user's dropout stays
    assert start.tokenizer is not None
    assert start.tokenizer.tokens == taught.tokenizer.tokens
    encoder = TextEncoder(start.config.network.text_encoder).eval()
    encoder.load_state_dict(dict(start.weights.states["text"]), strict=True)
    text = "Age: 61.5 years. Albumin: 34 g/L. Ascites: missing. Known cirrhosis, Child-Pugh B."
    features = []
    for tokenizer, network in ((taught.tokenizer, taught.encoder), (start.tokenizer, encoder)):
        encoded = tokenizer.encode([text], max_length=512)
        assert tokenizer.tokens.index("[UNK]") not in encoded.input_ids_BT
        with torch.no_grad():
            features.append(network(*map(torch.from_numpy, (encoded.input_ids_BT, encoded.attention_mask_BT))))
    assert torch.equal(*features)
    assert "was taught to read the 3 fields of 'short' on drawn records alone" in start.notes[0]


def test_another_rendering_or_version_of_it_is_refused(reading, tmp_path):
    prepare_initialization(config("flags"), ct=None, text=reading)
    with pytest.raises(UsageError, match="were taught to read flags, values, and the training renders pairs"):
        prepare_initialization(config("pairs"), ct=None, text=reading)
    folder = shutil.copytree(reading, tmp_path / "older")
    document = json.loads((folder / "reading.json").read_text())
    document["renderings"]["values"] = 0
    (folder / "reading.json").write_text(json.dumps(document))
    with pytest.raises(UsageError, match="were taught text 'values' version 0"):
        prepare_initialization(config(), ct=None, text=folder)


def test_another_schema_is_told(reading):
    changed = parse_schema({**SHORT, "name": "other", "fields": SHORT["fields"][1:]}, where="other")  # type: ignore[index]
    assert (
        "0 of its 2 fields are new" in prepare_initialization(config(), ct=None, text=reading, schema=changed).notes[1]
    )
    liver = load_schema(None)
    notes = prepare_initialization(config(), ct=None, text=reading, schema=liver).notes
    assert f"{len(liver.fields)} of its {len(liver.fields)} fields are new to reading or differ" in notes[1]


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.txt", "clinical_schema.json", "config.json"])
def test_a_file_that_was_changed_is_found(reading, tmp_path, name):
    folder = shutil.copytree(reading, tmp_path / "changed")
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(DamagedError, match=f"{name} is not as tmi pretrain-text wrote it"):
        prepare_initialization(config(), ct=None, text=folder)


def test_the_command_writes_a_folder_and_replaces_no_other(tmp_path):
    (tmp_path / "short.json").write_text(json.dumps(SHORT))
    arguments = ("pretrain-text", "--preset", "tiny", "--schema", "short.json", "--steps", 2, "--batch", 8)
    done = tmi(*arguments, "--rendering", "values", "--rendering", "flags", "--out", "reading", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "albumin" in done.out
    document = json.loads((tmp_path / "reading" / "reading.json").read_text())
    assert document["renderings"] == {"values": 1, "flags": 1}
    assert document["clinical_schema"]["digest"] == SCHEMA.digest
    assert tmi(*arguments, "--out", "reading", cwd=tmp_path).code == 2
    assert tmi(*arguments, "--out", "reading", "--force", cwd=tmp_path).code == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    refused = tmi(*arguments, "--out", "mine", "--force", cwd=tmp_path)
    assert refused.code == 2
    assert "--force replaces nothing else" in refused.err
    assert "unknown rendering 'prose'" in tmi(*arguments, "--rendering", "prose", "--out", "x", cwd=tmp_path).err


def test_a_comparison_starts_from_the_folder_keeps_it_frozen_and_goes_on_from_no_other(reading, tmp_path):
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
    done = tmi(*arguments, "--text-weights", reading, cwd=tmp_path)
    assert done.code == 0, done.err
    runs = tmp_path / "comparison" / "runs"
    assert "text" in json.loads((runs / "tmi-clnet" / "pretrained.json").read_text())
    assert not (runs / "logreg" / "pretrained.json").exists()
    given = load_file(reading / "model.safetensors")
    trained = load_file(runs / "tmi-clnet" / "fold1" / "model.safetensors")
    assert all(torch.equal(trained[f"text_encoder.bert.{name}"], tensor) for name, tensor in given.items())
    report = (tmp_path / "comparison" / "tables.md").read_text()
    assert "--text-weights reading" in report
    assert "--freeze text" in report

    assert report.startswith("# The clinical record alone")
    audited = tmi("audit", runs / "tmi-clnet", "cohort", cwd=tmp_path)
    assert audited.code == 0, audited.out
    assert "none of the 12 cases has a CT" in audited.out

    other = tmp_path / "other"
    lesson = replace(LESSON, renderings=("values",), steps=1)
    write_encoder(other, pretrain(SCHEMA, SIZES, lesson), SCHEMA, lesson)
    refused = tmi(*arguments, "--text-weights", other, cwd=tmp_path)
    assert refused.code == 2
    assert "other" in refused.err
    untaught = tmi(*arguments, "--model", "flags", "--text-weights", other, "--out", "new", cwd=tmp_path)
    assert untaught.code == 2
    assert "were taught to read values, and the training renders flags" in untaught.err
    assert not (tmp_path / "new").exists()
