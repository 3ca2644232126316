"""Recipes of `tmi train` and `tmi compare`: settings, the taught text encoder, and the line if it is not taught."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from factories.tmi_command import tmi
from tmi.toolkit.clinical.schema import parse_schema
from tmi.toolkit.config.presets import paper, tiny
from tmi.toolkit.errors import UsageError
from tmi.training.cli.options import configure
from tmi.training.cli.pretrain_text import poorly_read
from tmi.training.cli.text_teaching import taught_encoder, untaught_line, with_taught_text
from tmi.training.pretrained.initial_weights import prepare_initialization

SCHEMA = parse_schema(
    {
        "schema": "tmi-clinical-schema/1",
        "name": "one",
        "version": "1",
        "sections": ["blood"],
        "fields": [{"name": "age", "label": "Age", "section": "blood", "unit": "years", "plausible": [0, 120]}],
    },
    where="one",
)
SVM = replace(tiny(), system=replace(tiny().system, name="svm"))


def test_recipe_sets_fields_and_set_takes_precedence():
    """`strong` averages CTs, `--set` undoes it, `paper` is the preset itself, and another name is wrong usage."""
    assert configure("tiny", None, None, [], recipe="paper") == tiny()
    assert configure("tiny", None, None, [], recipe="strong").ct.antialias
    assert not configure("tiny", None, None, ["ct.antialias=false"], recipe="strong").ct.antialias
    with pytest.raises(UsageError, match="unknown recipe"):
        configure("tiny", None, None, [], recipe="best")


@pytest.mark.long
def test_encoder_is_taught_once_for_a_schema(tmp_path, monkeypatch, capsys):
    """The second call reads the first one's folder, which a training takes; other renderings are taught anew."""
    monkeypatch.setenv("TMI_CACHE", str(tmp_path))
    first = taught_encoder(tiny(), SCHEMA, ("compact",), steps=1)
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert taught_encoder(tiny(), SCHEMA, ("compact",), steps=1) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    assert "text encoder of this schema from" in capsys.readouterr().err
    assert prepare_initialization(tiny(), ct=None, text=first, schema=SCHEMA).encoders == ("text",)
    other = taught_encoder(tiny(), SCHEMA, ("values", "flags"), steps=1)
    assert other != first
    assert set(json.loads((other / "reading.json").read_text())["renderings"]) == {"values", "flags"}


@pytest.mark.long
def test_encoder_that_another_user_can_write_is_not_used(tmp_path, monkeypatch):
    """The cache is private: folder and files are the owner's alone, and an entry that others can write is rejected."""
    monkeypatch.setenv("TMI_CACHE", str(tmp_path))
    folder = taught_encoder(tiny(), SCHEMA, ("compact",), steps=1)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (folder, folder.parent)} == {0o700}
    (folder / "model.safetensors").chmod(0o666)
    with pytest.raises(UsageError, match="taught text encoder"):
        taught_encoder(tiny(), SCHEMA, ("compact",), steps=1)


def test_taught_encoder_is_frozen_unless_the_user_says_otherwise(monkeypatch, tmp_path):
    """`strong` freezes the taught encoder; given `train.freeze`, given weights or a model without it change nothing."""
    monkeypatch.setattr("tmi.training.cli.text_teaching.taught_encoder", lambda *_: tmp_path)
    config, folder = with_taught_text(tiny(), "strong", SCHEMA, None, [])
    assert (config.train.freeze, folder) == (("text",), tmp_path)
    config, folder = with_taught_text(tiny(), "strong", SCHEMA, None, ["train.freeze=[]"])
    assert (config.train.freeze, folder) == ((), tmp_path)
    given = tmp_path / "given"
    for config, recipe, weights in ((tiny(), "strong", given), (tiny(), "paper", None), (SVM, "strong", None)):
        assert with_taught_text(config, recipe, SCHEMA, weights, []) == (config, weights)


def test_large_encoder_and_missing_cache_are_wrong_usage(monkeypatch):
    """The encoder of `paper` would take hours, and without a cache folder it would be taught for every run."""
    with pytest.raises(UsageError, match="too large"):
        taught_encoder(paper(), SCHEMA, ("compact",))
    monkeypatch.setenv("TMI_CACHE", "off")
    with pytest.raises(UsageError, match="no cache folder"):
        taught_encoder(tiny(), SCHEMA, ("compact",))


def test_untaught_encoder_is_named(tmp_path):
    """One line says how to teach it; none with weights or for a model without the encoder."""
    assert "--recipe strong" in (untaught_line(tiny(), None) or "")
    assert untaught_line(tiny(), tmp_path) is None
    assert untaught_line(SVM, None) is None


def test_poorly_read_fields_are_named_worst_first():
    """Fields below an R2 of 0.5, the worst first."""
    assert poorly_read({"age": 0.9, "albumin": 0.4, "bilirubin": 0.06}) == ["bilirubin", "albumin"]


def test_unknown_recipe_of_the_command_is_wrong_usage(tmp_path):
    """Exit code 2, before anything is read."""
    outcome = tmi("train", tmp_path, "--recipe", "best")
    assert outcome.code == 2
    assert "choose one of paper, strong" in outcome.err
