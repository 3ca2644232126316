"""`tmi compare --external`: every run predicts cases of other patients, with the probability of a bundle."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import logit
from sklearn.metrics import roc_auc_score

from factories.cases import write_cohort
from factories.random_run import write_random_run
from factories.small_comparison import arguments
from factories.tmi_command import tmi
from tmi.runtime.serving.predictor import Predictor
from tmi.toolkit.cases.case import Cohort, open_cohort
from tmi.toolkit.cases.fingerprint import cohort_fingerprint
from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import UsageError
from tmi.toolkit.model_registry import REFERENCE_MODEL
from tmi.toolkit.run_folder import RunFolder
from tmi.training.comparison.external import ExternalEvaluation, evaluate_external
from tmi.training.comparison.external_cohort import require_external
from tmi.training.comparison.external_table import caption, external_columns, external_rows
from tmi.training.comparison.formatting import TableEntry
from tmi.training.comparison.paper_tables import TABLES
from tmi.training.evaluation.statistics.delong import delong_test

OTHER = "simpleff"


@pytest.fixture(scope="module")
def outside(synthetic_cohort: Path) -> Cohort:
    return open_cohort(synthetic_cohort)


@pytest.fixture(scope="module")
def evaluation(
    nano_run: Path, nano_config: Config, outside: Cohort, tmp_path_factory: pytest.TempPathFactory
) -> ExternalEvaluation:
    """Two runs with random weights on the cohort, one of whose CTs is damaged."""
    folder = tmp_path_factory.mktemp("external")
    other = write_random_run(folder / "other", nano_config, seed=6)
    cohort = folder / "cohort"
    shutil.copytree(outside.folder, cohort)
    damaged = open_cohort(cohort).cases[0]
    damaged.ct.write_bytes(b"no NIfTI")
    runs = {REFERENCE_MODEL: RunFolder.open(nano_run), OTHER: RunFolder.open(other)}
    return evaluate_external(runs, open_cohort(cohort), scratch=folder)


def test_probability_is_the_bundles(evaluation, nano_bundle, outside):
    """The ensemble's probability of a case is the one that the exported bundle predicts."""
    result = evaluation.results[REFERENCE_MODEL]
    with Predictor.open(nano_bundle, engine="onnx", threads=1) as predictor:
        for case_id, probability in list(zip(result.case_ids, result.probability_N, strict=True))[:3]:
            case = next(c for c in outside.cases if c.case_id == case_id)
            assert predictor.predict([case.folder])[0].probability["bad"] == pytest.approx(probability, abs=1e-5)


def test_probability_is_calibrated(evaluation, nano_run, outside, tmp_path):
    """A fold's temperature divides its logits."""
    shutil.copytree(nano_run, tmp_path / "run")
    run = RunFolder.open(tmp_path / "run")
    first = run.folds[0].fold
    metrics = json.loads(run.fold(first).metrics.read_text(encoding="utf-8"))
    assert metrics.get("calibration", {}).get("temperature", 1.0) == 1.0
    run.fold(first).metrics.write_text(json.dumps(metrics | {"calibration": {"temperature": 2.0}}), encoding="utf-8")
    result = evaluate_external({REFERENCE_MODEL: run}, outside, scratch=tmp_path).results[REFERENCE_MODEL]
    before_MN = evaluation.results[REFERENCE_MODEL].folds_MN
    np.testing.assert_allclose(logit(result.folds_MN[0, 1:]), logit(before_MN[0]) / 2.0, atol=1e-6)
    np.testing.assert_allclose(result.folds_MN[1, 1:], before_MN[1], atol=1e-6)


def test_rejected_case_is_left_out_of_every_run(evaluation, outside):
    """All runs predict the same cases, without the rejected one, in the cohort's order."""
    ids = tuple(case.case_id for case in outside.cases[1:])
    assert [error.case_id for error in evaluation.rejected] == [outside.cases[0].case_id]
    assert {result.case_ids for result in evaluation.results.values()} == {ids}


def test_damaged_run_does_not_stop_the_others(nano_run, nano_config, outside, tmp_path):
    """A run whose weights cannot be read has its reason; the other runs have their results."""
    broken = RunFolder.open(write_random_run(tmp_path / "broken", nano_config, seed=6))
    broken.fold(broken.folds[0].fold).model.write_bytes(b"no weights")
    done: list[str] = []
    runs = {OTHER: broken, REFERENCE_MODEL: RunFolder.open(nano_run)}
    found = evaluate_external(runs, outside, scratch=tmp_path, on_run=done.append)
    assert list(found.results) == [REFERENCE_MODEL]
    assert "cannot be read as safetensors" in found.failed[OTHER]
    assert done == [OTHER, REFERENCE_MODEL]


def test_metrics_and_tests(evaluation):
    """AUC of ensemble and folds are scikit-learn's; the difference from TMI-CLNet is DeLong's on the same cases."""
    ours, other = evaluation.results[REFERENCE_MODEL], evaluation.results[OTHER]
    assert other.metrics["roc_auc"] == pytest.approx(roc_auc_score(other.positive_N, other.probability_N))
    assert other.fold_aucs == pytest.approx([roc_auc_score(other.positive_N, fold) for fold in other.folds_MN])
    assert evaluation.tests == {OTHER: delong_test(ours.positive_N, other.probability_N, ours.probability_N)}
    low, high = other.auc_interval
    assert low <= other.metrics["roc_auc"] <= high


def test_decisions_use_the_threshold_of_the_run(evaluation):
    """Balanced accuracy depends on the run's own threshold."""
    result = evaluation.results[OTHER]
    sorted_N = np.sort(result.probability_N)
    everyone = replace(result, threshold=float(sorted_N[0]) / 2)
    assert everyone.metrics["balanced_accuracy"] == pytest.approx(0.5)
    assert everyone.metrics["recall"] == 1.0


def test_ceiling_of_a_synthetic_cohort(evaluation, outside):
    """The caption states the AUC of the true posterior of all modalities, and the number of cases left out."""
    truth = json.loads((outside.folder / "truth.json").read_text(encoding="utf-8"))
    assert evaluation.ceiling == truth["drawn_auc"]["ct+radiomics+clinical"]
    assert "The true posterior has an AUC of" in caption(evaluation)
    assert f"{len(outside.cases) - 1} cases that no model was trained on" in caption(evaluation)
    assert "1 more left out" in caption(evaluation)
    assert "posterior" not in caption(replace(evaluation, ceiling=None))


def entry(key: str, result: object) -> TableEntry:
    row = next(row for row in TABLES[1].rows if row.key == key)
    return TableEntry(row=row, result=result, failure="", paired=None, mcnemar_holm=None, delong_holm=None)


def test_rows_of_the_report(evaluation):
    """A table has a row for each run: the ensemble's AUC with its interval, the folds', and Holm's correction."""
    entries = [entry(key, SimpleNamespace(key=key)) for key in (REFERENCE_MODEL, OTHER)]
    header, rows = external_rows(entries, evaluation)
    assert [len(row) for row in rows] == [len(header)] * 2
    auc, (low, high) = evaluation.results[OTHER].metrics["roc_auc"], evaluation.results[OTHER].auc_interval
    assert rows[1][1] == f"{auc:.2f} [{low:.2f}, {high:.2f}]"
    assert rows[0][4:] == ["", "", ""]
    ours, other = external_columns(entries, evaluation)
    assert other["external_auc"] == auc
    assert other["external_delong_p"] == other["external_delong_p_holm"] == evaluation.tests[OTHER].p
    assert ours["external_delong_p"] is None


def test_run_without_external_results_has_a_reason(evaluation):
    """A run that could not predict the cohort is a row with the reason; a run that was not trained has no row."""
    partial = replace(
        evaluation, results={REFERENCE_MODEL: evaluation.results[REFERENCE_MODEL]}, tests={}, failed={OTHER: "why"}
    )
    entries = [entry(REFERENCE_MODEL, SimpleNamespace(key=REFERENCE_MODEL)), entry(OTHER, SimpleNamespace(key=OTHER))]
    _, rows = external_rows([*entries, entry("svm", None)], partial)
    assert [row[:2] for row in rows][1:] == [["SimpleFF", "failed: why"]]
    assert external_columns(entries, partial)[1]["external_auc"] is None


def test_patient_of_the_cohort_is_rejected(tmp_path):
    """A patient of the training cohort, under another case id too, and a copy of a CT are rejected by case id."""
    inside, other = (write_cohort(tmp_path / name, cases=6) for name in ("inside", "outside"))
    table = other / "cohort.csv"
    same = table.read_text(encoding="utf-8")
    with pytest.raises(UsageError, match="6 external cases are of a patient"):
        require_external(open_cohort(inside), open_cohort(other))
    renamed = "\n".join(
        line if n == 0 else ",".join((line.split(",")[0], f"Q{n}", *line.split(",")[2:]))
        for n, line in enumerate(same.splitlines())
    )
    table.write_text(renamed + "\n", encoding="utf-8")
    for number, case in enumerate(
        open_cohort(other).cases
    ):  # other bytes: NIfTI readers ignore what follows the voxels
        case.ct.write_bytes(case.ct.read_bytes() + bytes(number + 1))
    require_external(open_cohort(inside), open_cohort(other))
    copied = open_cohort(other).cases[3]
    shutil.copy(open_cohort(inside).cases[0].ct, copied.ct)
    with pytest.raises(UsageError, match=f"1 external case is of a patient.* case {copied.case_id}$"):
        require_external(open_cohort(inside), open_cohort(other))


def test_cohort_without_labels_or_of_one_class_is_rejected(outside):
    """Without labels, or with one case of a class, there is nothing to evaluate."""
    unlabelled = replace(outside, cases=(replace(outside.cases[0], label=None), *outside.cases[1:]))
    with pytest.raises(UsageError, match=f"external cases without a label: 1, case {outside.cases[0].case_id}"):
        require_external(Cohort(folder=outside.folder, cases=()), unlabelled)
    one_class = replace(outside, cases=tuple(replace(case, label=0) for case in outside.cases))
    with pytest.raises(UsageError, match="0 cases of a bad prognosis and 8 of a good one"):
        require_external(Cohort(folder=outside.folder, cases=()), one_class)


@pytest.mark.long
def test_command_evaluates_external_cohort(tmp_path, outside):
    """`tmi compare --external` writes the external AUC to page, tables, CSV and JSON; a second call trains nothing."""
    cohort = write_cohort(tmp_path / "cohort", cases=12, with_mask=False)
    out = tmp_path / "out"
    command = arguments(
        cohort, out, "--table", "baselines", "--model", "late-fusion", "--external", str(outside.folder)
    )
    outcome = tmi(*command)
    assert outcome.code == 0, outcome.err
    assert "external late fusion" in outcome.out
    rows = list(csv.DictReader((out / "baselines.csv").read_text(encoding="utf-8").splitlines()))
    assert {row["row"]: row["external_cases"] for row in rows} == {REFERENCE_MODEL: "8", "late-fusion": "8"}
    for page in ("report.html", "tables.md"):
        assert "AUC of the ensemble" in (out / page).read_text(encoding="utf-8"), page
    document = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    assert document["external"]["fingerprint"] == cohort_fingerprint(outside)
    assert document["external"]["cases"] == 8
    assert f"--external {outside.folder.name}" in document["command"]
    again = tmi(*command)
    assert again.code == 0
    assert again.err.count("reused") == 2
    assert [p.name for p in out.iterdir() if p.name.startswith(".external")] == []
