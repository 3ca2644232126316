"""Collecting shards: the result of one prediction, or an error that names what is missing."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import pytest

from factories.tmi_command import tmi
from tmi.runtime.serving.result_log import _next_chain
from tmi.toolkit.cases.shard import Shard

SHARDS = 3


@pytest.fixture(scope="module")
def cohort(synthetic_cohort, tmp_path_factory) -> Path:
    """Eight cases; the second one is rejected."""
    folder = tmp_path_factory.mktemp("shards") / "cohort"
    shutil.copytree(synthetic_cohort, folder)
    (sorted(folder.glob("*/clinical.json"))[1]).write_text("{")
    return folder


@pytest.fixture(scope="module")
def words(nano_bundle) -> tuple:
    return ("--bundle", nano_bundle, "--engine", "onnx", "--threads", 1)


@pytest.fixture(scope="module")
def shards(cohort, words, tmp_path_factory) -> list[Path]:
    """Logs of all shards; read-only."""
    folder = tmp_path_factory.mktemp("parts")
    logs = [folder / f"part.{number}.jsonl" for number in range(1, SHARDS + 1)]
    for number, log in enumerate(logs, start=1):
        tmi("predict", cohort, *words, "--shard", f"{number}/{SHARDS}", "--resume", "-o", log)
    return logs


@pytest.fixture
def parts(shards, tmp_path) -> list[Path]:
    """Logs of all shards, to be changed."""
    return [Path(shutil.copy(log, tmp_path)) for log in shards]


def _collect(cohort, bundle, parts, *more):
    return tmi("collect", cohort, *parts, "--bundle", bundle, *more)


def _values(document: dict) -> list[dict]:
    return [{k: v for k, v in r.items() if k not in ("seconds", "overlapped")} for r in document["results"]]


def _rechained(path: Path, edit) -> None:
    """Edit the parsed lines of a log and write it with a valid chain, as a forger or a later version would."""
    rows, chain, lines = [json.loads(line) for line in path.read_text().splitlines()], "", []
    edit(rows)
    for row in rows:
        fields = {key: value for key, value in row.items() if key != "chain"}
        chain = _next_chain(fields, chain)
        lines.append(json.dumps({**fields, "chain": chain}))
    path.write_text("\n".join([*lines, ""]))


def test_collected_shards_equal_one_prediction(cohort, words, parts, nano_bundle, tmp_path):
    """Document, table and CSV are those of a single prediction: every case once, in the order of the cohort."""
    whole = tmi("predict", cohort, *words, "--json")
    joined = _collect(cohort, nano_bundle, reversed(parts), "--json", "-o", tmp_path / "all.json")
    assert (whole.code, joined.code) == (3, 3)
    assert _values(joined.document) == _values(whole.document)
    assert [r["status"] for r in joined.document["results"]].count("refused") == 1
    assert {k: joined.document[k] for k in ("alerts", "bundle", "counts", "schema", "batch")} == {
        k: whole.document[k] for k in ("alerts", "bundle", "counts", "schema", "batch")
    }
    assert joined.document["engine"]["reason"].startswith("3 shards; ")
    assert "3 shards: 7 predicted, 1 rejected" in joined.err
    assert json.loads((tmp_path / "all.json").read_text()) == joined.document
    assert _collect(cohort, nano_bundle, parts, "-o", tmp_path / "all.csv").code == 3
    rows = list(csv.DictReader((tmp_path / "all.csv").read_text().splitlines()))
    assert [row["case_id"] for row in rows] == [r["case_id"] for r in whole.document["results"]]


def test_shard_predicts_its_cases_alone(cohort, shards):
    """Each log holds the cases of its shard; its header names shard and machine."""
    for number, log in enumerate(shards, start=1):
        head, *rows = map(json.loads, log.read_text().splitlines())
        shard = Shard(number=number, count=SHARDS)
        assert (head["shard"], head["machine"]["name"]) == (str(shard), "onnx")
        assert {row["case_id"] for row in rows} == {p.name for p in cohort.iterdir() if shard.holds(p.name)} - {
            "cohort.csv", "truth.json", "synthetic.json",
        }  # fmt: skip


def test_finished_shard_is_resumed_on_a_machine_with_another_engine_record(cohort, words, parts):
    """Threads and reason of the machine need not be the same; the shard must."""
    _rechained(parts[0], lambda rows: rows[0]["machine"].update(threads=64, reason="another machine"))
    again = tmi("predict", cohort, *words, "--shard", f"1/{SHARDS}", "--resume", "-o", parts[0])
    assert again.code in (0, 3), again.err
    assert "are already predicted" in again.err
    other = tmi("predict", cohort, *words, "--shard", f"2/{SHARDS}", "--resume", "-o", parts[0])
    assert (other.code, "has another shard (1/3, not 2/3)" in other.err) == (2, True)


def _engine(parts, cohort):
    _rechained(parts[1], lambda rows: rows[0].update(engine="openvino"))


def _threads(parts, cohort):
    _rechained(parts[1], lambda rows: rows[0].update(version="9.9.9"))


def _trust_level(parts, cohort):
    _rechained(parts[2], lambda rows: rows[0].update(trust_level=0.01))


def _case_lost(parts, cohort):
    part = max(parts, key=lambda path: path.stat().st_size)
    part.write_text("".join(part.read_text().splitlines(keepends=True)[:-1]))


def _torn_line(parts, cohort):
    part = max(parts, key=lambda path: path.stat().st_size)
    part.write_bytes(part.read_bytes()[:-1])


def _edited(parts, cohort):
    part = max(parts, key=lambda path: path.stat().st_size)
    part.write_text(part.read_text().replace('"spread": 0.', '"spread": 1.'))


def _case_twice(parts, cohort):
    part = max(parts, key=lambda path: path.stat().st_size)
    _rechained(part, lambda rows: rows.append(dict(rows[-1])))


def _foreign_case(parts, cohort):
    source = max(parts, key=lambda path: path.stat().st_size)
    row = json.loads(source.read_text().splitlines()[-1])
    target = next(path for path in parts if path != source)
    _rechained(target, lambda rows: rows.append(row))


def _other_division(parts, cohort):
    _rechained(parts[2], lambda rows: rows[0].update(shard="3/4"))


def _not_a_shard(parts, cohort):
    _rechained(parts[0], lambda rows: rows[0].pop("shard"))


def _no_machine(parts, cohort):
    _rechained(parts[1], lambda rows: rows[0].pop("machine"))


def _wrong_machine(parts, cohort):
    _rechained(parts[1], lambda rows: rows[0]["machine"].update(threads="two"))


def _not_a_log(parts, cohort):
    parts[0].write_text('{"schema": "something/1"}\n')


def _empty(parts, cohort):
    parts[0].write_text("")


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (_engine, 2, "part.2.jsonl has another engine (openvino, not onnx as in "),
        (_threads, 2, "part.2.jsonl has another version (9.9.9, not "),
        (_trust_level, 2, "part.3.jsonl has another trust_level (0.01, not None as in "),
        (_case_lost, 2, "1 of 8 cases have no result: "),
        (_torn_line, 2, "1 of 8 cases have no result: "),
        (_edited, 6, "is damaged or was edited"),
        (_case_twice, 6, "is damaged or was edited"),
        (_foreign_case, 6, "holds cases that are not in shard "),
        (_other_division, 2, "part.3.jsonl is shard 3/4, but "),
        (_not_a_shard, 2, "part.1.jsonl is not the log of a shard: it holds a whole prediction"),
        (_no_machine, 6, "part.2.jsonl: line 1 is damaged or was edited"),
        (_wrong_machine, 6, "part.2.jsonl: line 1 is damaged or was edited"),
        (_not_a_log, 2, "part.1.jsonl is not a result log"),
        (_empty, 2, "part.1.jsonl is empty"),
    ],
)
def test_differing_shard_is_rejected(cohort, nano_bundle, parts, tmp_path, change, code, message):
    """A shard of another prediction, or with a gap or a double, is named, and nothing is written."""
    change(parts, cohort)
    outcome = _collect(cohort, nano_bundle, parts, "-o", tmp_path / "all.json")
    assert (outcome.code, message in outcome.err) == (code, True), outcome.err
    assert not (tmp_path / "all.json").exists()


def test_missing_shard_and_double_are_named(cohort, nano_bundle, parts, tmp_path):
    """The missing shard is named with the option that predicts it; a shard given twice by both its files."""
    outcome = _collect(cohort, nano_bundle, [parts[0], parts[2]])
    assert (outcome.code, "1 of 3 shards are missing: 2/3" in outcome.err) == (2, True)
    assert "--shard 2/3 --resume" in outcome.err
    copy = Path(shutil.copy(parts[0], tmp_path / "copy.jsonl"))
    outcome = _collect(cohort, nano_bundle, [*parts, copy])
    assert (outcome.code, f"shard 1/3 is given twice: {parts[0]} and {copy}" in outcome.err) == (2, True)
    outcome = _collect(cohort, nano_bundle, [*parts, parts[0]])
    assert (outcome.code, f"{parts[0]} is given twice" in outcome.err) == (2, True)


def test_changed_cases_are_rejected(cohort, nano_bundle, parts, tmp_path):
    """A case whose files changed since its prediction is named; `--no-files` leaves the comparison out."""
    changed = Path(shutil.copytree(cohort, tmp_path / "cohort", copy_function=shutil.copy2))
    assert _collect(changed, nano_bundle, parts).code == 3
    case = sorted(path for path in changed.iterdir() if path.is_dir())[3]
    os.utime(case / "radiomics.csv", ns=(1, 1))
    outcome = _collect(changed, nano_bundle, parts)
    assert (outcome.code, f"the files of case {case.name} have changed" in outcome.err) == (2, True)
    assert _collect(changed, nano_bundle, parts, "--no-files").code == 3


def test_result_of_another_cohort_is_rejected(cohort, nano_bundle, parts, tmp_path):
    """A result that belongs to no case of the cohort is named."""
    smaller = Path(shutil.copytree(cohort, tmp_path / "cohort"))
    lines = (smaller / "cohort.csv").read_text().splitlines()
    (smaller / "cohort.csv").write_text("\n".join([*lines[:-1], ""]))
    outcome = _collect(smaller, nano_bundle, parts, "--no-files")
    last = lines[-1].split(",")[0]
    assert (outcome.code, f"1 results belong to no case of the cohort: {last}" in outcome.err) == (2, True)


def test_shards_of_another_bundle_are_rejected(cohort, tiny_bundle, parts):
    """The document states a bundle, which must be the one that predicted."""
    outcome = _collect(cohort, tiny_bundle, parts)
    assert (outcome.code, "were predicted by another bundle" in outcome.err) == (2, True)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--shard", "1/2"), "a shard is written as a result log"),
        (("--shard", "1/2", "-o", "x.json"), "a shard is written as a result log"),
        (("--shard", "3/2", "-o", "x.jsonl"), "shard 3/2 does not exist"),
        (("--shard", "1/2", "-o", "x.jsonl", "--server", "http://127.0.0.1:1"), "--shard has no effect with --server"),
    ],
)
def test_wrong_usage_of_shards(cohort, more, message):
    """Mistakes are found before a bundle is opened."""
    outcome = tmi("predict", cohort, *more)
    assert (outcome.code, message in outcome.err) == (2, True), outcome.err


def test_shard_without_cases_is_finished(cohort, words, nano_bundle, tmp_path):
    """With more shards than cases some are empty: their log has a header alone, and the exit code is 0."""
    case_ids = [path.name for path in cohort.iterdir() if path.is_dir()]
    count = 40
    number = next(n for n in range(1, count + 1) if not any(map(Shard(number=n, count=count).holds, case_ids)))
    outcome = tmi("predict", cohort, *words, "--shard", f"{number}/{count}", "-o", tmp_path / "part.jsonl")
    assert (outcome.code, f"shard {number}/{count}: 0 of 8 cases" in outcome.err) == (0, True), outcome.err
    assert len((tmp_path / "part.jsonl").read_text().splitlines()) == 1
