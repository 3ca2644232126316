"""Suggestions for mistyped commands, options and paths."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from factories.tmi_command import tmi
from tmi.toolkit.cli.suggestions import closest, did_you_mean, similar_path


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Working folder with `held-out/`, `runs/first/` and a hidden folder."""
    for name in ("held-out", "runs/first", ".hiden"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("old.json", "settings.json"):
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("word", "expected"), [("trian", "train"), ("TRAIN", "train"), ("predic", "predict"), ("fly", None), ("", None)]
)
def test_closest_word(word, expected):
    """The closest known word is returned, upper case ignored; a word that is like none has no suggestion."""
    assert closest(word, ["train", "predict", "check"]) == expected
    assert did_you_mean(word, ["train", "predict"]) == (f"did you mean {expected!r}?" if expected else None)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("heldout", "held-out"),
        ("./heldout", "held-out"),
        ("runs/frist", "runs/first"),
        ("rusn/frist", "runs/first"),
        ("Runs/first", "runs/first"),
        ("hidden", None),
        ("elsewhere", None),
        ("runs/first/fold7", None),
        ("no.json", None),
        ("settigns.json", "settings.json"),
    ],
)
def test_similar_path(folder, path, expected):
    """Every part of a missing path is corrected; hidden folders are not suggested."""
    assert similar_path(Path(path)) == (None if expected is None else Path(expected))
    absolute = None if expected is None else folder / expected
    assert similar_path(folder / path) == absolute


def test_similar_path_of_a_folder_that_cannot_be_listed(folder):
    (folder / "runs" / "file").write_text("")
    assert similar_path(Path("runs/file/x")) is None


@pytest.mark.parametrize(
    ("words", "question"),
    [
        (("predic", "case"), "No such command 'predic'; did you mean 'predict'?"),
        (("predict", "case", "--enginee", "onnx"), "No such option: --enginee; did you mean --engine?"),
        (("train", "--epoch", "3"), "No such option: --epoch; did you mean --epochs?"),
        (("--versoin",), "--version?"),
        (("help", "trian"), "did you mean 'train'?"),
    ],
)
def test_command_line_asks_what_was_meant(words, question, monkeypatch):
    """An unknown command or option ends with 2, and the message names the closest one."""
    monkeypatch.setattr(os, "environ", {**os.environ, "COLUMNS": "120"})
    outcome = tmi(*words)
    assert outcome.code == 2
    assert question in outcome.err
