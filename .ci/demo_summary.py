"""Compares predictions of a synthetic cohort with its labels: the last lines of `make demo`.

    python .ci/demo_summary.py demo/predictions.json demo/held-out

The labels are those of cohort.csv; the best possible AUC on these cases is in truth.json.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

ALL_MODALITIES = "ct+radiomics+clinical"


def roc_auc(scores: list[float], bad: list[bool]) -> float:
    """Share of the pairs of a bad and a good case in which the bad one has the higher score; a tie counts half."""
    pairs = [
        (score, other)
        for score, is_bad in zip(scores, bad, strict=True)
        for other, other_is_bad in zip(scores, bad, strict=True)
        if is_bad and not other_is_bad
    ]
    return sum((score > other) + 0.5 * (score == other) for score, other in pairs) / len(pairs)


def summary(predictions: Path, cohort: Path) -> list[str]:
    """Lines about the decisions and the AUC."""
    results = [r for r in json.loads(predictions.read_text())["results"] if r["status"] == "predicted"]
    with (cohort / "cohort.csv").open(newline="") as stream:
        labels = {row["case_id"]: row["label"] for row in csv.DictReader(stream)}
    best = json.loads((cohort / "truth.json").read_text())["drawn_auc"][ALL_MODALITIES]
    bad = [labels[r["case_id"]] == "bad" for r in results]
    decided = [r for r in results if r["decision"] in labels.values()]
    right = sum(r["decision"] == labels[r["case_id"]] for r in decided)
    reached = roc_auc([r["probability"]["bad"] for r in results], bad)
    return [
        f"{right} of {len(decided)} decisions are right; {len(results) - len(decided)} withheld",
        f"ROC AUC of the probabilities {reached:.2f}; the best possible on these cases is {best:.2f}",
    ]


if __name__ == "__main__":
    print(*summary(Path(sys.argv[1]), Path(sys.argv[2])), sep="\n")
