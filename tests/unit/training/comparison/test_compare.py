"""`tmi compare`: the paper's tables in miniature, each configuration trained once, reused, resumed, told honestly."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from factories.ctrl_c import ctrl_c_in_epoch
from factories.nano import nano
from factories.pretrained_files import write_bert
from factories.small_comparison import Comparison, arguments, compare
from factories.tmi_command import CommandResult, tmi
from tmi.toolkit.config.overrides import override
from tmi.toolkit.errors import UsageError
from tmi.toolkit.run_folder import RunFolder
from tmi.training.comparison.paper_tables import PAPER_METRICS, REFERENCE_MODEL, TABLES
from tmi.training.comparison.plan import make_plan, select_tables
from tmi.training.evaluation.metrics import METRICS
from tmi.training.systems import sklearn_arrays as estimator_arrays
from tmi.training.systems.factory import build_network
from tmi.training.systems.registry import SYSTEMS

EVERY = make_plan(nano(), select_tables("all"))


@pytest.fixture(scope="module")
def cohort(small_comparison: Comparison) -> Path:
    return small_comparison.cohort


@pytest.fixture(scope="module")
def whole(small_comparison: Comparison) -> tuple[Path, CommandResult]:
    """All four tables: one epoch, two folds."""
    return small_comparison.folder, small_comparison.outcome


# The plan


def test_the_rows_are_the_systems_and_ablations_of_the_issue_and_each_is_trained_once():
    assert [len(t.rows) for t in TABLES.values()] == [8, 7, 4, 5]
    assert {r.key for r in TABLES[1].rows} == set(SYSTEMS) - {"logreg", "clinical-rf"}, "yardsticks of our own"
    assert len(EVERY.runs) == 21
    assert EVERY.runs[0].key == REFERENCE_MODEL
    assert len({json.dumps(str(run.config)) for run in EVERY.runs}) == 21
    shared = {key for (_, key), run in EVERY.behind.items() if run == REFERENCE_MODEL}
    assert shared == {REFERENCE_MODEL, "ima-tcaf", "lambda-0.6"}


def test_a_row_shares_a_run_by_its_config_and_not_by_its_name():
    """With the released lambda of 0.2 it is the row of 0.2 that is TMI-CLNet's own."""
    plan = make_plan(override(nano(), ["loss.tmff_lambda=0.2"]), select_tables("4"))
    assert plan.run_of_row[4, "lambda-0.2"] == REFERENCE_MODEL
    assert plan.run_of_row[4, "lambda-0.6"] == "lambda-0.6"


def test_frozen_encoders_stay_frozen_where_a_row_has_them():
    base = replace(nano(), train=replace(nano().train, freeze=("ct", "text")))
    frozen = {run.key: run.config.train.freeze for run in make_plan(base, select_tables("all")).runs}
    assert frozen[REFERENCE_MODEL] == frozen["mmd"] == ("ct", "text")
    assert frozen["clinical-radiomics"] == frozen["clinical"] == ("text",)
    assert frozen["resnet50"] == frozen["svm"] == frozen["radiomics"] == ()


def test_what_is_asked_of_every_row_is_applied_where_a_row_has_such_a_part_and_told_where_not():
    base = replace(nano(), train=replace(nano().train, freeze=("text",), precision="bf16-mixed"))
    plan = make_plan(base, select_tables("1"), weights=("ct", "text"))
    weights = {run.key: run.weights for run in plan.runs}
    assert weights[REFERENCE_MODEL] == weights["mmd"] == ("ct", "text")
    assert weights["resnet50"] == weights["svm"] == ()
    lacking = dict(line.split(" is not applied to what has no such part: ") for line in plan.not_applied)
    assert lacking == {
        "--freeze text": "resnet50, vit, svm, rf, simpleff",
        "--ct-weights": "resnet50, vit, svm, rf, simpleff",
        "--text-weights": "resnet50, vit, svm, rf, simpleff",
        "--precision bf16-mixed": "svm, rf",
    }
    assert make_plan(nano(), select_tables("1")).not_applied == ()


def test_text_weights_and_freezing_reach_the_rows_that_have_a_text_encoder(cohort, tmp_path):
    """And other weights, or none, are refused in the same folder."""
    write_bert(tmp_path / "bert")
    asked = ["--table", "2", "--model", "image", "--freeze", "text", "--precision", "bf16-mixed"]
    given = [*asked, "--text-weights", str(tmp_path / "bert")]
    outcome = compare(cohort, tmp_path / "out", *given)
    assert outcome.code == 0, outcome.err
    runs = {key: RunFolder.open(tmp_path / "out" / "runs" / key) for key in (REFERENCE_MODEL, "image")}
    assert json.loads(runs[REFERENCE_MODEL].pretrained.read_text()).keys() == {"text"}
    assert not runs["image"].pretrained.exists()
    assert (runs[REFERENCE_MODEL].config.train.freeze, runs["image"].config.train.freeze) == (("text",), ())
    assert {run.config.train.precision for run in runs.values()} == {"bf16-mixed"}
    trained = load_file(runs[REFERENCE_MODEL].fold(0).model)
    taken = load_file(tmp_path / "bert" / "model.safetensors")
    name = "encoder.layer.0.attention.self.query.weight"
    (ours,) = (tensor for key, tensor in trained.items() if key.endswith(name))
    (theirs,) = (tensor for key, tensor in taken.items() if key.endswith(name))
    assert torch.equal(ours, theirs)
    told = (tmp_path / "out" / "tables.md").read_text()
    for what in ("--freeze text", "--text-weights"):
        assert f"{what} is not applied to what has no such part: image" in told
        assert f"{what} is not applied to what has no such part: image" in outcome.err
    assert "--text-weights bert --freeze text --precision bf16-mixed" in told

    assert compare(cohort, tmp_path / "out", *given).code == 0
    query = taken[next(key for key in taken if key.endswith(name))]
    query += 1
    save_file(taken, tmp_path / "bert" / "model.safetensors")
    other = compare(cohort, tmp_path / "out", *given)
    assert other.code == 2
    assert "was started from other pre-trained weights" in other.err
    unfrozen = compare(cohort, tmp_path / "out", *given, "--freeze", "")
    assert unfrozen.code == 2
    assert "another config" in unfrozen.err


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--devices", "3"), "shared out over 3 processes"),
        (("--devices", "2", "--parallel-folds", "2"), "spreads a fold over 2"),
        (("--freeze", "liver"), "train.freeze"),
        (("--ct-weights", "nowhere.pth"), "nowhere.pth"),
    ],
)
def test_options_that_cannot_work_are_refused_before_any_row_is_trained(cohort, tmp_path, more, text):
    outcome = compare(cohort, tmp_path / "out", "--table", "3", *more)
    assert outcome.code == 2
    assert text in outcome.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_rows_of_folds_side_by_side_have_the_figures_of_one_after_another(cohort, tmp_path):
    asked = ("--table", "2", "--model", "image")
    program = "import sys; from tmi.toolkit.cli.main import main; sys.exit(main())"
    for out, threads, more in (("one", "1", ()), ("two", "2", ("--parallel-folds", "2"))):
        argv = [sys.executable, "-c", program, *arguments(cohort, tmp_path / out, *asked, *more)]
        subprocess.run(argv, env={**os.environ, "OMP_NUM_THREADS": threads}, check=True)
    assert (tmp_path / "one" / "table2.csv").read_bytes() == (tmp_path / "two" / "table2.csv").read_bytes()
    assert "--parallel-folds 2" in json.loads((tmp_path / "two" / "comparison.json").read_text())["command"]


@pytest.mark.parametrize("asked", ["5", "one", ""])
def test_an_unknown_table_is_wrong_usage(asked):
    with pytest.raises(UsageError, match="unknown table"):
        select_tables(asked)


def test_an_unknown_row_is_told_with_the_known_ones():
    with pytest.raises(UsageError, match="no row 'svn'") as error:
        make_plan(nano(), select_tables("1"), only=["svn"])
    assert "svm" in error.value.fix


def test_the_papers_figures_are_the_papers():
    """Table 1 and the best row of every table, as printed."""
    assert {r.key: r.paper for r in TABLES[1].rows}["hfbsurv"] == pytest.approx(
        (0.7945, 0.8201, 0.6432, 0.7233, 0.8015)
    )
    best = (0.8312, 0.8438, 0.7428, 0.7805, 0.8223)
    for number, key in ((1, REFERENCE_MODEL), (2, REFERENCE_MODEL), (3, "ima-tcaf"), (4, "lambda-0.6")):
        found = next(r.paper for r in TABLES[number].rows if r.key == key)
        assert found == pytest.approx(best)
        assert max(r.paper[0] for r in TABLES[number].rows) == pytest.approx(best[0])


# Every row in miniature


@pytest.mark.parametrize("key", [run.key for run in EVERY.runs])
def test_every_row_trains_and_its_models_load(whole, key):
    folder, _ = whole
    run = RunFolder.open(folder / "runs" / key).require_finished()
    assert len(run.folds) == 2
    for split in run.folds:
        files = run.fold(split.fold)
        figures = json.loads(files.metrics.read_text())["test"]
        assert all(0.0 <= figures[name] <= 1.0 for name in METRICS)
        assert {r["case_id"] for r in csv.DictReader(io.StringIO(files.predictions.read_text()))} == set(split.test)
        if SYSTEMS[run.config.system.name].needs == "sklearn":
            assert "median" in estimator_arrays.load(files.model)
        else:
            build_network(run.config, seed=0).load_state_dict(load_file(files.model))


def test_all_rows_have_the_same_folds(whole):
    folder, _ = whole
    assert len({(run / "folds.json").read_bytes() for run in (folder / "runs").iterdir()}) == 1


@pytest.mark.parametrize("number", TABLES)
def test_a_table_has_a_line_a_row_with_our_figures_and_the_papers(whole, number):
    lines = list(csv.DictReader(io.StringIO((whole[0] / f"table{number}.csv").read_text())))
    assert [line["row"] for line in lines] == [r.key for r in TABLES[number].rows]
    for line, row in zip(lines, TABLES[number].rows, strict=True):
        for metric, paper in zip(PAPER_METRICS, row.paper, strict=True):
            assert float(line[f"{metric}_paper"]) == paper
            low, pooled, high = (float(line[f"{metric}_{part}"]) for part in ("low", "pooled", "high"))
            assert low <= pooled + 1e-12
            assert pooled <= high + 1e-12
        ours = EVERY.behind[number, row.key] == REFERENCE_MODEL
        assert (line["mcnemar_p"] == "") == (line["delong_p"] == "") == ours
        if not ours:
            assert 0.0 <= float(line["mcnemar_p"]) <= float(line["mcnemar_p_holm"]) <= 1.0


def test_the_mean_and_deviation_of_a_table_are_those_of_its_runs_summary(whole):
    folder, _ = whole
    line = next(csv.DictReader(io.StringIO((folder / "table1.csv").read_text())))
    over = json.loads((folder / "runs" / line["row"] / "summary.json").read_text())["over_folds"]
    for metric in PAPER_METRICS:
        assert float(line[f"{metric}_mean"]) == over[metric]["mean"]
        assert float(line[f"{metric}_std"]) == over[metric]["std"]


def test_the_pages_hold_every_table_and_the_plots_need_no_network(whole):
    folder, outcome = whole
    page, text = (folder / "report.html").read_text(), (folder / "tables.md").read_text()
    for table in TABLES.values():
        assert f"<h2>Table {table.number}: {table.title}</h2>" in page
        assert f"## Table {table.number}: {table.title}" in text
        assert all(f"| {row.label} |" in text for row in table.rows)
    images = re.findall(r"<img ([^>]*)>", page)
    assert len(images) == 4 * 6
    for image in images:
        assert re.match(r'alt="Table \d: [^"]{30,}" src="data:image/svg\+xml;base64,', image)
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    assert "<script" not in page
    assert len(page) < 3_000_000
    assert "place" in outcome.out
    for machine in (str(folder), str(folder.parent), str(Path.home())):
        assert machine not in page + text + (folder / "comparison.json").read_text()


def test_a_comparison_of_real_cases_is_not_called_synthetic_nor_optimistic(whole):
    text = (whole[0] / "tables.md").read_text()
    assert "synthetic" not in text
    assert "optimistic" not in text
    assert "What this cohort allows" not in text


# Reuse, failure, refusal


def test_finished_runs_are_reused_and_their_figures_are_the_same(whole, cohort, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "whole")
    times = {p: p.stat().st_mtime_ns for p in (folder / "runs").rglob("*") if p.is_file()}
    outcome = compare(cohort, folder, "--table", "4", "--model", "no-tmff", "--model", "lambda-0.2")
    assert outcome.code == 0
    assert re.findall(r"^(.+): (?:reused|started|continued)$", outcome.err, re.M) == [
        REFERENCE_MODEL,
        "no-tmff",
        "lambda-0.2",
    ]
    assert outcome.err.count(": reused") == 3
    assert {p: p.stat().st_mtime_ns for p in times} == times
    before, after = (list(csv.DictReader(io.StringIO((f / "table4.csv").read_text()))) for f in (whole[0], folder))
    means = {line["row"]: line["roc_auc_mean"] for line in before}
    assert {line["row"]: line["roc_auc_mean"] for line in after} == {
        key: means[key] for key in ("no-tmff", "lambda-0.2", "lambda-0.6")
    }


def test_another_config_in_the_same_folder_is_wrong_usage_and_changes_nothing(whole, cohort):
    outcome = compare(cohort, whole[0], "--table", "1", settings=("train.learning_rate=0.5",))
    assert outcome.code == 2
    assert "is of a comparison with another config" in outcome.err
    assert "--out" in outcome.err


def test_an_edited_run_is_damage(cohort, tmp_path, whole):
    shutil.copytree(whole[0] / "runs" / REFERENCE_MODEL, tmp_path / "runs" / REFERENCE_MODEL)
    with (tmp_path / "runs" / REFERENCE_MODEL / "fold0" / "predictions.csv").open("a") as file:
        file.write("X,bad,1,1,0,9\n")
    outcome = compare(cohort, tmp_path, "--table", "3", "--model", "ima-tcaf")
    assert outcome.code == 6
    assert "predictions.csv was changed" in outcome.err
    assert "trains it again" in outcome.err


def test_a_row_that_fails_is_reported_and_the_others_go_on(cohort, tmp_path):
    outcome = compare(
        cohort, tmp_path, "--table", "1", "--model", "vit", "--model", "svm", settings=("system.vit.patch_DHW=[4,5,5]",)
    )
    assert outcome.code == 1
    assert "failed   vit: vit: patches of (5, 5) do not divide" in outcome.err
    lines = {r["row"]: r for r in csv.DictReader(io.StringIO((tmp_path / "table1.csv").read_text()))}
    assert set(lines) == {"vit", "svm", REFERENCE_MODEL}
    assert "do not divide" in lines["vit"]["failed"]
    assert lines["svm"]["accuracy_mean"] != ""
    assert "failed: vit: patches" in (tmp_path / "report.html").read_text()


def test_a_released_and_synthetic_comparison_says_so_in_every_section(tmp_path, cohort):
    marked = shutil.copytree(cohort, tmp_path / "cohort")
    best = dict.fromkeys(["ct", "ct+clinical", "ct+radiomics+clinical"], 0.9)
    (marked / "truth.json").write_text(json.dumps({"synthetic": True, "best_auc": best, "drawn_auc": best}))
    outcome = compare(
        marked, tmp_path / "out", "--table", "2", "--model", "image", settings=("train.protocol=released",)
    )
    assert outcome.code == 0, outcome.err
    for name, start in (("report.html", "<h2>"), ("tables.md", "\n## ")):
        sections = (tmp_path / "out" / name).read_text().split(start)
        assert len(sections) == 3  # the head, the table, the ceilings
        for section in sections:
            assert "The cohort is synthetic: the figures say nothing about patients." in section
            assert "These figures are optimistic: the best epoch is picked on the very fold" in section
    assert "What this cohort allows" in sections[-1]
    assert "Fusion (pooled AUC" in outcome.out
    assert "vision alone" in outcome.out


# A kill


def test_a_comparison_stopped_in_the_middle_of_a_run_goes_on_to_the_same_tables(cohort, tmp_path):
    rows = ["--table", "1", "--model", "rf"]
    out = tmp_path / "stopped"
    with ctrl_c_in_epoch(2):
        outcome = tmi(*arguments(cohort, out, *rows, epochs=4))
    assert outcome.code == 130
    assert f"interrupted; the same command with --out {out} goes on" in outcome.err
    history = out / "runs" / REFERENCE_MODEL / "fold0" / "history.csv"
    assert len(history.read_text().splitlines()) == 3
    assert not (out / "report.html").exists()

    outcome = tmi(*arguments(cohort, out, *rows, epochs=4))
    assert outcome.code == 0, outcome.err
    assert f"{REFERENCE_MODEL}: continued" in outcome.err
    assert "rf: started" in outcome.err
    plain = tmi(*arguments(cohort, tmp_path / "plain", *rows, epochs=4))
    assert plain.code == 0
    assert (out / "table1.csv").read_bytes() == (tmp_path / "plain" / "table1.csv").read_bytes()
    assert (out / "report.html").read_bytes() == (tmp_path / "plain" / "report.html").read_bytes()


@pytest.mark.slow  # the test above stops one within this process
@pytest.mark.timeout(280)
def test_a_comparison_killed_in_the_middle_of_a_run_goes_on_to_the_same_tables(cohort, tmp_path):
    rows = ["--table", "1", "--model", "rf"]
    main = [sys.executable, "-c", "import sys; from tmi.toolkit.cli.main import main; sys.exit(main())"]
    out = tmp_path / "killed"
    command = [*main, *arguments(cohort, out, *rows, epochs=12)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    history = out / "runs" / REFERENCE_MODEL / "fold0" / "history.csv"
    deadline = time.monotonic() + 200
    while not (history.is_file() and len(history.read_text().splitlines()) > 2):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "report.html").exists()

    outcome = tmi(*arguments(cohort, out, *rows, epochs=12))
    assert outcome.code == 0, outcome.err
    assert f"{REFERENCE_MODEL}: continued" in outcome.err
    assert "rf: started" in outcome.err
    plain = tmi(*arguments(cohort, tmp_path / "plain", *rows, epochs=12))
    assert plain.code == 0
    assert (out / "table1.csv").read_bytes() == (tmp_path / "plain" / "table1.csv").read_bytes()
    assert (out / "report.html").read_bytes() == (tmp_path / "plain" / "report.html").read_bytes()
