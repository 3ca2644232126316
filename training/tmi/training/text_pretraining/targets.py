"""Regression targets of the text pre-training: the content of a record as columns of numbers.

    number     its position on the field's scale; 0, the middle of the scale, if missing
    word       one column for each choice: 1 for the record's choice, 0 otherwise and if missing
    presence   1 if the record has the field

Each column is scaled to a mean near 0 and a variance near 1 over synthetic records. The loss is a weighted mean of the
squared errors of the columns, with weight 1 for a number, 1 / (number of choices) for a word column and
`PRESENCE_WEIGHT` for a presence. The low weight makes an encoder that is narrower than the columns drop presences
first. N records, K columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from tmi.toolkit.clinical.schema import Schema
from tmi.training.text_pretraining.synthetic_records import MEAN_MISSING_FRACTION, SyntheticRecords

PRESENCE_WEIGHT = 0.1
"""Loss weight of a presence column, relative to 1 for a number."""


@dataclass(frozen=True, kw_only=True)
class TargetColumns:
    """Meaning and loss weight of each target column."""

    names: tuple[str, ...]
    """Field of each column."""
    kinds: tuple[str, ...]
    """Kind of each column: `number`, `word` or `presence`."""
    weights_K: Float[np.ndarray, " K"]
    """Loss weights with sum 1; float32."""


def target_columns(schema: Schema) -> TargetColumns:
    """Target columns of a schema: numbers and words field by field, then one presence column for each field."""
    kinds = [("number", 1.0, f) if f.choices is None else ("word", 1.0 / len(f.choices), f)
             for f in schema.fields for _ in f.choices or " "]  # fmt: skip
    kinds += [("presence", PRESENCE_WEIGHT, f) for f in schema.fields]
    weights = np.array([weight for _, weight, _ in kinds])
    return TargetColumns(
        names=tuple(field.name for *_, field in kinds),
        kinds=tuple(kind for kind, *_ in kinds),
        weights_K=(weights / weights.sum()).astype(np.float32),
    )


def regression_targets(sampled: SyntheticRecords, schema: Schema) -> Float[np.ndarray, "N K"]:
    """Target columns of sampled records; float32."""
    columns = []
    for i, field in enumerate(schema.fields):
        present = sampled.present_NF[:, i]
        if field.choices is None:
            # the variance of U(-1, 1) is 1/3
            columns.append(np.where(present, sampled.position_NF[:, i], 0.0) * np.sqrt(3.0))
            continue
        # Bernoulli: mean p and variance p (1 - p)
        p = 1.0 / len(field.choices)
        for k in range(len(field.choices)):
            columns.append((((sampled.choice_NF[:, i] == k) & present) - p) / max(np.sqrt(p * (1.0 - p)), 0.1))
    p = 1.0 - MEAN_MISSING_FRACTION
    presence = (sampled.present_NF - p) / np.sqrt(p * (1.0 - p))
    return np.column_stack([*columns, presence]).astype(np.float32)
