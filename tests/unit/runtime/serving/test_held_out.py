"""Held-out predictions of a run, compared with those that its training recorded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from factories.random_run import write_random_run
from tmi.runtime import Predictor
from tmi.runtime.bundle.reader import open_bundle
from tmi.runtime.serving.held_out import compare_held_out
from tmi.toolkit.cases.case import open_cohort
from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.run_folder import RunFolder
from tmi.toolkit.storage.csv_files import csv_text

COLUMNS = ("case_id", "label", "probability_bad", "calibrated_bad")


@pytest.fixture(scope="module")
def predicted(nano_bundle, synthetic_cohort):
    """Case -> fold -> probability of `bad` by the complete predictor."""
    with Predictor.open(nano_bundle, engine="onnx", verify=False) as predictor:
        results = predictor.predict(open_cohort(synthetic_cohort).cases)
    return {r.case_id: {f.fold: f.probability["bad"] for f in r.folds} for r in results}


@pytest.fixture
def exported(nano_bundle, nano_config, synthetic_cohort, predicted, tmp_path):
    """The run of the bundle on a cohort, and the bundle; the run's table holds the predictions of the bundle."""
    run = RunFolder.open(write_random_run(tmp_path / "run", nano_config, folds=2, seed=5, cohort=synthetic_cohort))
    bundle = open_bundle(nano_bundle)
    record, state = bundle.manifest.run, run.state
    cohort = replace(record.cohort, fingerprint=state["cohort"]["fingerprint"])
    stated = replace(record, name=state["name"], started_at=state["started_at"], cohort=cohort)
    write_tables(run, predicted)
    return replace(bundle, manifest=replace(bundle.manifest, run=stated)), run


def write_tables(run, probability):
    """Write the tables of held-out predictions; cases alternate between the classes."""
    for split in run.folds:
        rows = [
            (case, ("good", "bad")[number % 2], 0.5, probability[case][split.fold])
            for number, case in enumerate(split.test)
        ]
        run.fold(split.fold).predictions.write_text(csv_text(COLUMNS, rows), encoding="utf-8")
    run.finish()


def test_each_case_is_predicted_by_the_fold_that_holds_it_out(exported, synthetic_cohort):
    """The rows agree with the complete predictor's probability of that fold, and have its AUC."""
    bundle, run = exported
    recorded, onnx = compare_held_out(bundle, run.path, synthetic_cohort, ["onnx"], threads=1)
    assert (recorded.engine, onnx.engine, onnx.cases) == ("training", "onnx", 8)
    assert onnx.largest_difference < 1e-6
    assert (onnx.beyond, onnx.flips, onnx.auc, onnx.auc_difference) == (0, 0, recorded.auc, 0.0)


def test_a_changed_decision_is_counted(exported, predicted, synthetic_cohort):
    """A recorded probability on the other side of the threshold is a flip, beyond the error, and changes the AUC."""
    bundle, run = exported
    case, fold = run.folds[1].test[0], run.folds[1].fold
    other = 1.0 if predicted[case][fold] < bundle.manifest.threshold else 0.0
    write_tables(run, {**predicted, case: {**predicted[case], fold: other}})
    recorded, onnx = compare_held_out(bundle, run.path, synthetic_cohort, ["onnx"], threads=1)
    assert (onnx.beyond, onnx.flips) == (1, 1)
    assert onnx.largest_difference == pytest.approx(abs(other - predicted[case][fold]), abs=1e-6)
    assert onnx.auc_difference == pytest.approx(onnx.auc - recorded.auc)


def test_another_run_or_cohort_is_rejected(exported, nano_bundle, synthetic_cohort, tmp_path):
    """A bundle of another run, another cohort and a damaged table are typed errors."""
    bundle, run = exported
    with pytest.raises(UsageError, match="is not an export of run"):
        compare_held_out(open_bundle(nano_bundle), run.path, synthetic_cohort, [])
    table = tmp_path / "other"
    table.mkdir()
    text = (synthetic_cohort / "cohort.csv").read_text(encoding="utf-8").splitlines()
    (table / "cohort.csv").write_text("\n".join(text[:-1]) + "\n", encoding="utf-8")
    for row in text[1:-1]:
        (table / row.split(",")[0]).symlink_to(synthetic_cohort / row.split(",")[0])
    with pytest.raises(UsageError, match="is not the cohort that run"):
        compare_held_out(bundle, run.path, table, [])
    run.fold(0).predictions.write_text("case_id,label\nnobody,bad\n", encoding="utf-8")
    run.finish()
    with pytest.raises(DamagedError, match=r"predictions\.csv is missing or malformed"):
        compare_held_out(bundle, run.path, synthetic_cohort, [])


def test_options_need_each_other(nano_run, nano_bundle, tmp_path, monkeypatch):
    """--cohort without --run, and --run without a cohort, are wrong usage that names the option."""
    from factories.tmi_command import tmi

    monkeypatch.chdir(tmp_path)
    alone = tmi("verify", nano_bundle, "--cohort", nano_run)
    assert (alone.code, "--cohort is for --run and --rebuild" in alone.err) == (2, True)
    missing = tmi("verify", nano_bundle, "--run", nano_run)
    assert (missing.code, "name it with --cohort" in missing.err) == (2, True)
