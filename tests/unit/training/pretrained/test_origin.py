"""The origin of given weights and vocabularies is recorded as far as their place and content show it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from factories.pretrained_files import write_hara
from factories.small_bundle import small_manifest
from tmi.runtime.bundle.manifest import manifest_to_json
from tmi.runtime.bundle.manifest_records import CohortRecord, RunRecord
from tmi.toolkit.clinical.schema import load_schema
from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.config.presets import tiny
from tmi.toolkit.run_folder import FoldSplit, RunFolder
from tmi.toolkit.storage.hashing import sha256_file
from tmi.training.pretrained.origin import file_origin, vocabulary_record

FOLDS = (
    FoldSplit(fold=0, train=("A", "B"), validation=("C",), test=("D",)),
    FoldSplit(fold=1, train=("C", "D"), validation=("A",), test=("B",)),
)
SEEN = {"fold0/w.pth": ["A", "B", "C"], "fold1/deeper/w.pth": ["A", "C", "D"], "w.pth": ["A", "B", "C", "D"]}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    about = {"cases": 4, "fingerprint": "f" * 64, "synthetic": False}
    config, schema = tiny(), load_schema()
    RunFolder.create(folder, name="first", config=config, schema=schema, folds=FOLDS, cohort=about, versions={})
    return folder


@pytest.mark.parametrize("name", SEEN)
def test_file_inside_a_run_was_fitted_on_its_cases(name, run):
    """A fold's file names its training and validation cases, another file of the run all of them; so does a link."""
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    write_hara(run / name)
    expected = {"kind": "run", "run": "first", "cohort": "f" * 64, "cases": SEEN[name]}
    assert file_origin(run / name) == expected
    (run.parent / "link.pth").symlink_to(run / name)
    assert file_origin(run.parent / "link.pth") == expected


def test_copy_outside_a_run_is_unknown(run, tmp_path):
    """A copy does not show where it comes from; neither does a file of a damaged run or of an unrelated folder."""
    write_hara(run / "w.pth")
    shutil.copyfile(run / "w.pth", tmp_path / "w.pth")
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
    assert file_origin(tmp_path / "w.pth") == {"kind": "unknown"}
    (run / "run.json").write_text("{}")
    assert file_origin(run / "w.pth") == {"kind": "unknown"}


def test_file_inside_a_bundle_names_its_cohort(tmp_path):
    """A bundle holds no case ids, but its run's name and cohort."""
    (tmp_path / "tokenizers").mkdir()
    run = RunRecord(name="first", cohort=CohortRecord(fingerprint="f" * 64))
    (tmp_path / "manifest.json").write_text(json.dumps(manifest_to_json(replace(small_manifest(), run=run))))
    (tmp_path / "tokenizers" / "text-0.json").write_text("{}")
    origin = file_origin(tmp_path / "tokenizers" / "text-0.json")
    assert origin == {"kind": "bundle", "run": "first", "cohort": "f" * 64}


def test_pretraining_is_synthetic_until_it_is_changed(tmp_path):
    """Files of `tmi pretrain-text` are synthetic if their digests are equal; other files beside them are not."""
    for name in ("model.safetensors", "vocab.txt", "other.txt"):
        (tmp_path / name).write_text(name)
    files = {name: sha256_file(tmp_path / name) for name in ("model.safetensors", "vocab.txt")}
    (tmp_path / "reading.json").write_text(json.dumps({"files": files}))
    for path in (tmp_path, tmp_path / "vocab.txt"):
        assert file_origin(path) == {"kind": "synthetic"}
    assert file_origin(tmp_path / "other.txt") == {"kind": "unknown"}
    (tmp_path / "model.safetensors").write_text("fine-tuned on patients")
    assert file_origin(tmp_path) == {"kind": "unknown"}


def test_public_vocabulary_is_recognised_by_its_tokens(shared_data, tmp_path):
    """bert-base-cased's vocabulary is public in both forms; one more token makes it unknown."""
    path = shared_data / "bert-base-cased-vocab" / "vocab.txt"
    tokenizer = Tokenizer.from_vocab(path)
    tokenizer.save(tmp_path / "tokenizer.json")
    for form in (tokenizer, Tokenizer.load(tmp_path / "tokenizer.json")):
        assert vocabulary_record(form, None)["origin"] == {"kind": "public", "name": "bert-base-cased"}
    more = Tokenizer.from_tokens([*tokenizer.tokens, "Mustermann"], path)
    assert vocabulary_record(more, path)["origin"] == {"kind": "unknown"}
