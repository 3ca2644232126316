"""`tmi compare`: the paper's tables with small models; runs are shared, reused, resumed, and reported."""

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

from factories.keyboard_interrupt import interrupt_in_epoch
from factories.nano import nano
from factories.pretrained_files import write_bert
from factories.small_comparison import Comparison, arguments, compare
from factories.tmi_command import CommandResult, tmi
from tmi.toolkit.config.overrides import override
from tmi.toolkit.errors import UsageError
from tmi.toolkit.model_registry import MODELS
from tmi.toolkit.run_folder import RunFolder
from tmi.training.comparison.paper_tables import PAPER_METRICS, REFERENCE_MODEL, TABLES
from tmi.training.comparison.plan import make_plan, select_tables
from tmi.training.evaluation.metrics import METRICS
from tmi.training.systems import sklearn_arrays as estimator_arrays
from tmi.training.systems.factory import build_network

FULL_PLAN = make_plan(nano(), select_tables("all"))


@pytest.fixture(scope="module")
def cohort(small_comparison: Comparison) -> Path:
    return small_comparison.cohort


@pytest.fixture(scope="module")
def full_comparison(small_comparison: Comparison) -> tuple[Path, CommandResult]:
    """Folder and result of a comparison of all four tables: one epoch, two folds."""
    return small_comparison.folder, small_comparison.outcome


# The plan


def test_plan_trains_each_configuration_once():
    """The paper's tables have 24 rows and need 21 runs; rows with equal configs share a run."""
    assert [len(t.rows) for t in TABLES.values()] == [8, 7, 4, 5]
    not_in_the_paper = {"logreg", "clinical-rf", "late-fusion", "boosting"}
    assert {r.key for r in TABLES[1].rows} == set(MODELS) - not_in_the_paper
    assert len(FULL_PLAN.runs) == 21
    assert FULL_PLAN.runs[0].key == REFERENCE_MODEL
    assert len({json.dumps(str(run.config)) for run in FULL_PLAN.runs}) == 21
    shared = {key for (_, key), run in FULL_PLAN.run_of_row.items() if run == REFERENCE_MODEL}
    assert shared == {REFERENCE_MODEL, "ima-tcaf", "lambda-0.6"}


def test_rows_share_runs_by_config():
    """With a base lambda of 0.2, the row of lambda 0.2 shares TMI-CLNet's run."""
    plan = make_plan(override(nano(), ["loss.tmff_lambda=0.2"]), select_tables("4"))
    assert plan.run_of_row[4, "lambda-0.2"] == REFERENCE_MODEL
    assert plan.run_of_row[4, "lambda-0.6"] == "lambda-0.6"


def test_freeze_applies_to_rows_with_the_encoder():
    """`train.freeze` of a row keeps only the encoders that its model has."""
    base = replace(nano(), train=replace(nano().train, freeze=("ct", "text")))
    frozen = {run.key: run.config.train.freeze for run in make_plan(base, select_tables("all")).runs}
    assert frozen[REFERENCE_MODEL] == frozen["mmd"] == ("ct", "text")
    assert frozen["clinical-radiomics"] == frozen["clinical"] == ("text",)
    assert frozen["resnet50"] == frozen["svm"] == frozen["radiomics"] == ()


def test_options_without_matching_part_are_listed():
    """Weights, freezing and precision apply to the rows with such a part; the plan lists the other rows."""
    base = replace(nano(), train=replace(nano().train, freeze=("text",), precision="bf16-mixed"))
    plan = make_plan(base, select_tables("1"), weights=("ct", "text"))
    weights = {run.key: run.weights for run in plan.runs}
    assert weights[REFERENCE_MODEL] == weights["mmd"] == ("ct", "text")
    assert weights["resnet50"] == weights["svm"] == ()
    not_applied = dict(line.split(" is not applied to models without such a part: ") for line in plan.not_applied)
    assert not_applied == {
        "--freeze text": "resnet50, vit, svm, rf, simpleff",
        "--ct-weights": "resnet50, vit, svm, rf, simpleff",
        "--text-weights": "resnet50, vit, svm, rf, simpleff",
        "--precision bf16-mixed": "svm, rf",
    }
    assert make_plan(nano(), select_tables("1")).not_applied == ()


@pytest.mark.long
def test_text_weights_reach_rows_with_text_encoder(cohort, tmp_path):
    """Weights and freezing apply to the rows with a text encoder; the same folder rejects other weights."""
    write_bert(tmp_path / "bert")
    base_options = ["--table", "2", "--model", "image", "--freeze", "text", "--precision", "bf16-mixed"]
    options = [*base_options, "--text-weights", str(tmp_path / "bert")]
    outcome = compare(cohort, tmp_path / "out", *options)
    assert outcome.code == 0, outcome.err
    runs = {key: RunFolder.open(tmp_path / "out" / "runs" / key) for key in (REFERENCE_MODEL, "image")}
    assert json.loads(runs[REFERENCE_MODEL].pretrained.read_text()).keys() == {"text"}
    assert not runs["image"].pretrained.exists()
    assert (runs[REFERENCE_MODEL].config.train.freeze, runs["image"].config.train.freeze) == (("text",), ())
    assert {run.config.train.precision for run in runs.values()} == {"bf16-mixed"}
    trained = load_file(runs[REFERENCE_MODEL].fold(0).model)
    pretrained = load_file(tmp_path / "bert" / "model.safetensors")
    name = "encoder.layer.0.attention.self.query.weight"
    (weight,) = (tensor for key, tensor in trained.items() if key.endswith(name))
    (expected,) = (tensor for key, tensor in pretrained.items() if key.endswith(name))
    assert torch.equal(weight, expected)
    report = (tmp_path / "out" / "tables.md").read_text()
    for option in ("--freeze text", "--text-weights"):
        assert f"{option} is not applied to models without such a part: image" in report
        assert f"{option} is not applied to models without such a part: image" in outcome.err
    assert "--text-weights bert --freeze text --precision bf16-mixed" in report

    assert compare(cohort, tmp_path / "out", *options).code == 0
    query = pretrained[next(key for key in pretrained if key.endswith(name))]
    query += 1
    save_file(pretrained, tmp_path / "bert" / "model.safetensors")
    other = compare(cohort, tmp_path / "out", *options)
    assert other.code == 2
    assert "was started from different pre-trained weights" in other.err
    unfrozen = compare(cohort, tmp_path / "out", *options, "--freeze", "")
    assert unfrozen.code == 2
    assert "a different config" in unfrozen.err


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--devices", "3"), "is split over 3 processes"),
        (("--devices", "2", "--parallel-folds", "2"), "distributes a fold over 2"),
        (("--freeze", "liver"), "train.freeze"),
        (("--ct-weights", "nowhere.pth"), "nowhere.pth"),
    ],
)
def test_impossible_options_are_rejected_before_training(cohort, tmp_path, more, text):
    """Options that cannot work are exit code 2, and nothing is written."""
    outcome = compare(cohort, tmp_path / "out", "--table", "3", *more)
    assert outcome.code == 2
    assert text in outcome.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_parallel_folds_give_the_same_table(cohort, tmp_path):
    """Folds trained in parallel give the same table as sequential training."""
    options = ("--table", "2", "--model", "image")
    program = "import sys; from tmi.toolkit.cli.main import main; sys.exit(main())"
    for out, threads, more in (("one", "1", ()), ("two", "2", ("--parallel-folds", "2"))):
        argv = [sys.executable, "-c", program, *arguments(cohort, tmp_path / out, *options, *more)]
        subprocess.run(argv, env={**os.environ, "OMP_NUM_THREADS": threads}, check=True)
    assert (tmp_path / "one" / "table2.csv").read_bytes() == (tmp_path / "two" / "table2.csv").read_bytes()
    assert "--parallel-folds 2" in json.loads((tmp_path / "two" / "comparison.json").read_text())["command"]


@pytest.mark.parametrize("name", ["5", "one", ""])
def test_unknown_table_is_wrong_usage(name):
    """A name that is no table raises a `UsageError`."""
    with pytest.raises(UsageError, match="unknown table"):
        select_tables(name)


def test_unknown_row_error_lists_known_rows():
    """The fix of an unknown row lists the known keys."""
    with pytest.raises(UsageError, match="no row 'svn'") as error:
        make_plan(nano(), select_tables("1"), only=["svn"])
    assert "svm" in error.value.fix


def test_paper_metrics_match_the_paper():
    """A row of table 1 and the best row of every table hold the printed metrics."""
    assert {r.key: r.paper for r in TABLES[1].rows}["hfbsurv"] == pytest.approx(
        (0.7945, 0.8201, 0.6432, 0.7233, 0.8015)
    )
    best = (0.8312, 0.8438, 0.7428, 0.7805, 0.8223)
    for number, key in ((1, REFERENCE_MODEL), (2, REFERENCE_MODEL), (3, "ima-tcaf"), (4, "lambda-0.6")):
        paper = next(r.paper for r in TABLES[number].rows if r.key == key)
        assert paper == pytest.approx(best)
        assert max(r.paper[0] for r in TABLES[number].rows) == pytest.approx(best[0])


# Every row, trained for one epoch


@pytest.mark.parametrize("key", [run.key for run in FULL_PLAN.runs])
def test_every_row_trains_and_loads(full_comparison, key):
    """Every run is finished, its metrics are defined, and its models load."""
    folder, _ = full_comparison
    run = RunFolder.open(folder / "runs" / key).require_finished()
    assert len(run.folds) == 2
    for split in run.folds:
        files = run.fold(split.fold)
        metrics = json.loads(files.metrics.read_text())["test"]
        assert all(0.0 <= metrics[name] <= 1.0 for name in METRICS)
        assert {r["case_id"] for r in csv.DictReader(io.StringIO(files.predictions.read_text()))} == set(split.test)
        if MODELS[run.config.system.name].trainer == "sklearn":
            assert "median" in estimator_arrays.load(files.model)
        else:
            build_network(run.config, seed=0).load_state_dict(load_file(files.model))


def test_all_rows_have_the_same_folds(full_comparison):
    """folds.json is identical in all runs."""
    folder, _ = full_comparison
    assert len({(run / "folds.json").read_bytes() for run in (folder / "runs").iterdir()}) == 1


@pytest.mark.parametrize("number", TABLES)
def test_table_csv_has_our_and_paper_metrics(full_comparison, number):
    """The CSV of a table has one line for each row, with our metrics, the paper's and the tests."""
    lines = list(csv.DictReader(io.StringIO((full_comparison[0] / f"table{number}.csv").read_text())))
    assert [line["row"] for line in lines] == [r.key for r in TABLES[number].rows]
    for line, row in zip(lines, TABLES[number].rows, strict=True):
        for metric, paper in zip(PAPER_METRICS, row.paper, strict=True):
            assert float(line[f"{metric}_paper"]) == paper
            low, pooled, high = (float(line[f"{metric}_{part}"]) for part in ("low", "pooled", "high"))
            assert low <= pooled + 1e-12
            assert pooled <= high + 1e-12
        is_reference = FULL_PLAN.run_of_row[number, row.key] == REFERENCE_MODEL
        assert (line["mcnemar_p"] == "") == (line["delong_p"] == "") == is_reference
        if not is_reference:
            assert 0.0 <= float(line["mcnemar_p"]) <= float(line["mcnemar_p_holm"]) <= 1.0


def test_table_mean_and_sd_match_run_summary(full_comparison):
    """Mean and standard deviation in the CSV equal those of the run's summary.json."""
    folder, _ = full_comparison
    line = next(csv.DictReader(io.StringIO((folder / "table1.csv").read_text())))
    over = json.loads((folder / "runs" / line["row"] / "summary.json").read_text())["over_folds"]
    for metric in PAPER_METRICS:
        assert float(line[f"{metric}_mean"]) == over[metric]["mean"]
        assert float(line[f"{metric}_std"]) == over[metric]["std"]


def test_report_pages_are_complete_and_self_contained(full_comparison):
    """Both pages hold every table; the HTML page needs no network and no page names a folder of the machine."""
    folder, outcome = full_comparison
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
    assert "rank" in outcome.out
    for path in (str(folder), str(folder.parent), str(Path.home())):
        assert path not in page + text + (folder / "comparison.json").read_text()


def test_real_cohort_has_no_warning_notes(full_comparison):
    """The report of a real cohort has no note on synthetic data or optimistic metrics, and no ceilings."""
    text = (full_comparison[0] / "tables.md").read_text()
    assert "synthetic" not in text
    assert "optimistic" not in text
    assert "Performance ceilings of this cohort" not in text


# Reuse, failure, rejection


def test_finished_runs_are_reused(full_comparison, cohort, tmp_path):
    """A second call reuses finished runs, changes no file of them and reports the same metrics."""
    folder = shutil.copytree(full_comparison[0], tmp_path / "whole")
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
    before, after = (
        list(csv.DictReader(io.StringIO((f / "table4.csv").read_text()))) for f in (full_comparison[0], folder)
    )
    means = {line["row"]: line["roc_auc_mean"] for line in before}
    assert {line["row"]: line["roc_auc_mean"] for line in after} == {
        key: means[key] for key in ("no-tmff", "lambda-0.2", "lambda-0.6")
    }


def test_different_config_in_same_folder_is_wrong_usage(full_comparison, cohort):
    """A folder with runs of another config is exit code 2."""
    outcome = compare(cohort, full_comparison[0], "--table", "1", settings=("train.learning_rate=0.5",))
    assert outcome.code == 2
    assert "belongs to a comparison with a different config" in outcome.err
    assert "--out" in outcome.err


def test_edited_run_is_exit_code_6(cohort, tmp_path, full_comparison):
    """A run whose files were changed is reported as damaged, with its fix."""
    shutil.copytree(full_comparison[0] / "runs" / REFERENCE_MODEL, tmp_path / "runs" / REFERENCE_MODEL)
    with (tmp_path / "runs" / REFERENCE_MODEL / "fold0" / "predictions.csv").open("a") as file:
        file.write("X,bad,1,1,0,9\n")
    outcome = compare(cohort, tmp_path, "--table", "3", "--model", "ima-tcaf")
    assert outcome.code == 6
    assert "predictions.csv was changed" in outcome.err
    assert "trains it again" in outcome.err


def test_failed_row_does_not_stop_the_others(cohort, tmp_path):
    """A failed row is in the output and in the report, and the other rows are trained."""
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


def test_warning_notes_are_in_every_section(tmp_path, cohort):
    """A `released` comparison on a synthetic cohort has both notes in every section."""
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
            assert "The cohort is synthetic: the metrics do not apply to patients." in section
            assert "These metrics are optimistic: the best epoch is picked on the very fold" in section
    assert "Performance ceilings of this cohort" in sections[-1]
    assert "Fusion (pooled AUC" in outcome.out
    assert "vision alone" in outcome.out


# Interruption


def test_interrupted_comparison_resumes_to_same_tables(cohort, tmp_path):
    """After Ctrl-C during a run, the same command continues to the same report."""
    rows = ["--table", "1", "--model", "rf"]
    out = tmp_path / "stopped"
    with interrupt_in_epoch(2):
        outcome = tmi(*arguments(cohort, out, *rows, epochs=4))
    assert outcome.code == 130
    assert f"interrupted; continue with the same command and --out {out}" in outcome.err
    history = out / "runs" / REFERENCE_MODEL / "fold0" / "history.csv"
    assert len(history.read_text().splitlines()) == 3
    assert not (out / "report.html").exists()

    outcome = tmi(*arguments(cohort, out, *rows, epochs=4))
    assert outcome.code == 0, outcome.err
    assert f"{REFERENCE_MODEL}: continued" in outcome.err
    assert "rf: started" in outcome.err
    uninterrupted = tmi(*arguments(cohort, tmp_path / "uninterrupted", *rows, epochs=4))
    assert uninterrupted.code == 0
    assert (out / "table1.csv").read_bytes() == (tmp_path / "uninterrupted" / "table1.csv").read_bytes()
    assert (out / "report.html").read_bytes() == (tmp_path / "uninterrupted" / "report.html").read_bytes()


@pytest.mark.slow  # the test above interrupts one within this process
@pytest.mark.timeout(280)
def test_killed_comparison_resumes_to_same_tables(cohort, tmp_path):
    """After SIGKILL during a run, the same command continues to the same report."""
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
    uninterrupted = tmi(*arguments(cohort, tmp_path / "uninterrupted", *rows, epochs=12))
    assert uninterrupted.code == 0
    assert (out / "table1.csv").read_bytes() == (tmp_path / "uninterrupted" / "table1.csv").read_bytes()
    assert (out / "report.html").read_bytes() == (tmp_path / "uninterrupted" / "report.html").read_bytes()
