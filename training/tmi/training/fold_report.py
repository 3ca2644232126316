"""What a finished fold says of its held-out cases; the same two files for every system."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from tmi.toolkit.config import CLASSES
from tmi.toolkit.files import write_json, write_text
from tmi.toolkit.run_folder import FoldFolder
from tmi.training.fold_data import FoldData
from tmi.training.metrics import binary_metrics


def write_fold_report(
    data: FoldData, files: FoldFolder, *, probability_N: Float[np.ndarray, " N"], facts: Mapping[str, Any]
) -> None:
    """Write predictions.csv and, last, metrics.json.

    Args:
        data: the fold's data.
        files: where.
        probability_N: probability of the positive class for the split's test cases, in their order.
        facts: what metrics.json says of the training: picked epoch, validation loss, epochs.
    """
    split = data.split
    labels = data.labels(split.test)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("case_id", "label", "probability_bad"))
    writer.writerows(
        (case_id, CLASSES[label], repr(float(p)))
        for case_id, label, p in zip(split.test, labels, probability_N, strict=True)
    )
    write_text(files.predictions, text.getvalue())
    write_json(
        files.metrics,
        {
            "fold": split.fold,
            **facts,
            "cases": {"train": len(split.train), "validation": len(split.validation), "test": len(split.test)},
            "truncated_texts": data.truncated_texts,
            "test": binary_metrics(labels, probability_N),
        },
    )
