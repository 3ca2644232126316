"""The last lines of `make demo`: decisions and AUC of the held-out cases beside the best possible AUC."""

from __future__ import annotations

import importlib.util
import json

import pytest

from factories.paths import ROOT

spec = importlib.util.spec_from_file_location("demo_summary", ROOT / ".ci" / "demo_summary.py")
assert spec is not None
assert spec.loader is not None
demo_summary = importlib.util.module_from_spec(spec)
spec.loader.exec_module(demo_summary)


@pytest.mark.parametrize(
    ("scores", "auc"),
    [((0.9, 0.8, 0.2, 0.1), 1.0), ((0.1, 0.2, 0.8, 0.9), 0.0), ((0.5,) * 4, 0.5), ((0.9, 0.3, 0.4, 0.1), 0.75)],
)  # fmt: skip
def test_auc_of_two_bad_and_two_good_cases(scores, auc):
    """All pairs ranked right, wrong, tied, and one of four wrong."""
    assert demo_summary.roc_auc(list(scores), [True, True, False, False]) == auc


def test_summary_counts_decisions(tmp_path):
    """A withheld decision is neither right nor wrong, and a rejected case does not count."""
    rows = {
        "A": ("bad", "bad", 0.9),
        "B": ("good", "bad", 0.6),
        "C": ("good", "good", 0.2),
        "D": ("bad", "not-trusted", 0.7),
    }
    results = [
        {"status": "predicted", "case_id": case_id, "decision": decision, "probability": {"bad": bad, "good": 1 - bad}}
        for case_id, (_, decision, bad) in rows.items()
    ]
    (tmp_path / "p.json").write_text(json.dumps({"results": [*results, {"status": "refused", "case_id": "E"}]}))
    lines = [f"{case_id},P{case_id},{label}" for case_id, (label, _, _) in rows.items()]
    (tmp_path / "cohort.csv").write_text("\n".join(["case_id,patient_id,label", *lines, "E,PE,bad", ""]))
    (tmp_path / "truth.json").write_text(json.dumps({"drawn_auc": {"ct": 0.7, "ct+radiomics+clinical": 0.9876}}))
    assert demo_summary.summary(tmp_path / "p.json", tmp_path) == [
        "2 of 3 decisions are right; 1 withheld",
        "ROC AUC of the probabilities 1.00; the best possible on these cases is 0.99",
    ]
