"""What an encoder is to find in a record's text, as columns of numbers that a linear reading can give.

    a number       its place on the field's scale, 0 where missing, which is the middle of the scale
    a word         1 for the choice that it is, 0 for the others and where missing
    a field        1 where the record has it

Each column has a mean near 0 and a variance near 1 over drawn records. The loss is a weighted mean of the columns'
squared errors: 1 a number, 1 over its choices a word, `PRESENCE_WEIGHT` a presence; an encoder narrower than the
columns gives up presences first. N records, K columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from tmi.toolkit.clinical.schema import Schema
from tmi.training.text_pretraining.synthetic_records import MEAN_MISSING_FRACTION, SyntheticRecords

PRESENCE_WEIGHT = 0.1
"""Weight of knowing that a field is there, beside 1 for a number."""


@dataclass(frozen=True, kw_only=True)
class TargetColumns:
    """Which column says what."""

    names: tuple[str, ...]
    """Field of each column."""
    kinds: tuple[str, ...]
    """`number`, `word` or `presence`."""
    weights_K: Float[np.ndarray, " K"]
    """Weights in the loss, of sum 1; float32."""

    def by_kind(self, values_K: Float[np.ndarray, " K"]) -> Mapping[str, float]:
        """Kind -> mean of its columns' figures."""
        return {
            kind: float(np.mean([f for f, k in zip(values_K, self.kinds, strict=True) if k == kind]))
            for kind in dict.fromkeys(self.kinds)
        }


def target_columns(schema: Schema) -> TargetColumns:
    """The columns of a schema: numbers and words field by field, then a presence a field."""
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
    """The columns of drawn records; float32."""
    found = []
    for i, field in enumerate(schema.fields):
        present = sampled.present_NF[:, i]
        if field.choices is None:
            found.append(np.where(present, sampled.position_NF[:, i], 0.0) * np.sqrt(3.0))
            continue
        part = 1.0 / len(field.choices)
        for k in range(len(field.choices)):
            found.append((((sampled.choice_NF[:, i] == k) & present) - part) / max(np.sqrt(part * (1.0 - part)), 0.1))
    usual = 1.0 - MEAN_MISSING_FRACTION
    presence = (sampled.present_NF - usual) / np.sqrt(usual * (1.0 - usual))
    return np.column_stack([*found, presence]).astype(np.float32)
