"""First sentence of a comparison, digits of its tables, and texts of its plots."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from factories.browser import Browser, find_chromium
from factories.nano import nano
from tmi.toolkit.config.overrides import override
from tmi.training.comparison.formatting import (
    TableEntry,
    decimals,
    format_difference,
    format_mean_std,
    format_metric,
    format_p_value,
)
from tmi.training.comparison.html_page import _table
from tmi.training.comparison.paper_tables import TABLES
from tmi.training.comparison.plots import training_plot
from tmi.training.comparison.results import Result
from tmi.training.comparison.verdict import verdict

ROWS = {row.key: row for row in TABLES[1].rows}


def result(key: str, auc: float | None = 0.7, *, cases: int = 12, losses: tuple[float, ...] = ()) -> Result:
    history = tuple({"epoch": str(n), "validation_loss": str(v), "train_loss": "1"} for n, v in enumerate(losses))
    values: dict[str, Any] = {
        "key": key, "config": override(nano(), [f"system.name={key}"]), "case_ids": tuple(map(str, range(cases))),
        "over_folds": {"roc_auc": {"mean": auc, "std": 0.04321}}, "pooled": {"roc_auc": auc},
        "intervals": {"roc_auc": None if auc is None else (auc - 0.1, auc + 0.1)}, "histories": (history,),
    }  # fmt: skip
    arrays = dict.fromkeys(("positive_N", "probability_N", "calibrated_N", "fold_N", "folds"))
    return Result(**values, **arrays)  # type: ignore[arg-type]


def entry(key: str, auc: float | None, holm: float | None = None, *, failed: bool = False) -> TableEntry:
    shown = None if failed else result(key, auc)
    return TableEntry(row=ROWS[key], result=shown, failure="", paired=None, mcnemar_holm=None, delong_holm=holm)


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        (
            [entry("svm", 0.8, 0.2), entry("rf", 0.6, 0.9), entry("tmi-clnet", 0.7)],
            "On these 12 cases TMI-CLNet has rank 2 of 3 by pooled AUC (0.70, 95% interval 0.60 to 0.80), but no "
            "difference from another method is significant: the cohort cannot rank them.",
        ),
        (
            [entry("svm", 0.9, 0.01), entry("rf", 0.5, 0.04), entry("mmd", 0.69, 0.9), entry("tmi-clnet", 0.7)],
            "On these 12 cases TMI-CLNet has rank 2 of 4 by pooled AUC (0.70, 95% interval 0.60 to 0.80); it is "
            "significantly better than RF, and it is significantly worse than SVM, and no other difference is "
            "significant.",
        ),
        (
            [entry("tmi-clnet", 0.7), entry("svm", None, failed=True)],
            "Only TMI-CLNet has results on these 12 cases (pooled AUC 0.70, 95% interval 0.60 to 0.80), so there is "
            "nothing to compare it with.",
        ),
        (
            [entry("tmi-clnet", None, failed=True), entry("svm", 0.6)],
            "TMI-CLNet has no results, so this comparison shows nothing about it.",
        ),
        (
            [entry("tmi-clnet", None), entry("svm", None)],
            "The AUC is not defined on these 12 cases, which are all of one class.",
        ),
    ],
)
def test_verdict_in_one_sentence(entries, text):
    """The sentence has rank and interval of TMI-CLNet, and the methods that differ significantly."""
    assert verdict(entries, synthetic=False) == text
    assert "12 synthetic cases" in verdict(entries, synthetic=True) or "no results" in text


def test_row_of_several_tables_counts_once():
    """A run that two rows share is one method."""
    rows = [entry("svm", 0.6, 0.01), entry("svm", 0.6, 0.02), entry("tmi-clnet", 0.7), entry("tmi-clnet", 0.7)]
    sentence = verdict(rows, synthetic=False)
    assert "rank 1 of 2" in sentence
    assert sentence.count("SVM") == 1


@pytest.mark.parametrize(("cases", "digits"), [(1, 2), (12, 2), (100, 2), (101, 3), (184, 3), (1000, 3), (1001, 4)])
def test_last_digit_is_worth_at_most_one_case(cases, digits):
    """Metrics have no more digits than the number of cases supports; the paper's keep theirs."""
    assert decimals(cases) == digits
    assert format_metric("accuracy", 0.6543210, cases) == f"{65.43210:.{digits - 2}f}"
    assert format_metric("roc_auc", 0.6543210, cases) == f"{0.6543210:.{digits}f}"
    assert format_metric("accuracy", 0.8312) == "83.12"
    assert format_mean_std("roc_auc", result("svm", cases=cases)) == f"{0.7:.{digits}f} \u00b1 {0.04321:.{digits}f}"


def test_difference_and_p_value_are_short():
    """A difference that rounds to zero has no sign; a p-value above 0.1 has two digits."""
    assert [format_difference(v, 12) for v in (0.0139, -0.0833, -0.0001)] == ["+0.01", "\u22120.08", "0.00"]
    assert [format_p_value(p) for p in (None, 0.0001, 0.0123, 0.8164)] == ["n/a", "<0.001", "0.012", "0.82"]


def test_estimators_have_no_training_curves():
    """SVM, random forest and logistic regression are fitted at once; networks are trained in epochs."""
    estimators = ("svm", "rf", "logreg", "clinical-rf", "late-fusion", "boosting")
    epochs = {key: result(key).has_epochs for key in (*estimators, "vit", "tmi-clnet")}
    assert [key for key, trained in epochs.items() if not trained] == list(estimators)


def test_tick_labels_of_a_plot_are_not_cut():
    """Coordinates of an SVG are shortened, its texts are not: neighbouring ticks have different labels."""
    svg = training_plot([("ViT", result("vit", losses=(0.6912, 0.6915, 0.6921)))])
    labels = [float(t) for t in re.findall(r">(0\.69\d*)</text>", svg)]
    assert len(labels) > 2
    assert len(set(labels)) == len(labels)
    assert not re.search(r"<[^>]*\d\.\d{3,}[^>]*>", svg)


def test_reason_of_a_failed_row_may_wrap():
    """A long reason spans the columns of the metrics instead of widening the table."""
    page = _table(["Method", "", "ACC"], [["ViT", "ours", "failed: " + "long " * 50, "", ""]])
    assert re.search(r'<td>ours</td><td class="failure" colspan="3">failed: long', page)


def test_verdict_is_the_first_sentence(small_comparison):
    """Page, tables, document and terminal begin with the verdict; training curves leave the estimators out."""
    folder, outcome = small_comparison.folder, small_comparison.outcome
    summary = json.loads((folder / "comparison.json").read_text())["summary"]
    assert summary.startswith("On these 12 cases TMI-CLNet has rank ")
    assert re.search(f'</h1>\n<p class="verdict">{re.escape(summary)}</p>', (folder / "report.html").read_text())
    assert (folder / "tables.md").read_text().splitlines()[2] == f"**{summary}**"
    assert outcome.out.startswith(summary)
    (curves,) = re.findall(r'alt="Table 1: [^"]*Training curves[^"]*"', (folder / "report.html").read_text())
    assert "ViT" in curves
    assert "SVM" not in curves
    assert "RF" not in curves


def test_nothing_is_cut_off_at_1400_pixels(small_comparison, tmp_path):
    """At 1,400 pixels no table scrolls and every plot takes the width of the page."""
    if find_chromium() is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    with Browser(tmp_path, width=1400, height=1000) as browser:
        browser.open(small_comparison.folder / "report.html")
        cut = "[...document.querySelectorAll('.scroll')].filter((t) => t.scrollWidth > t.clientWidth).length"
        widths = "[...document.querySelectorAll('img')].map((i) => i.getBoundingClientRect().width)"
        assert browser.run(cut) == 0
        assert browser.run("document.documentElement.scrollWidth") <= 1400
        assert min(browser.run(widths)) > 1100
