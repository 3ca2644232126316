"""A clinical record alone as inputs: its text, and its values as plain numbers for models that read no text.

For cohorts that have no images, such as a trial's table. V values, one for each field of the schema.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from tmi.toolkit.cases.case import Case, open_case
from tmi.toolkit.clinical.record import ClinicalRecord, read_clinical
from tmi.toolkit.clinical.rendering import render
from tmi.toolkit.clinical.schema import Schema
from tmi.toolkit.clinical.units import check_units
from tmi.toolkit.config.schema import Config
from tmi.toolkit.qc.image_checks import raise_on_error


@dataclass(frozen=True, kw_only=True)
class ClinicalInputs:
    """One record, before any fitted scaling."""

    text: str
    """The record as text."""
    numbers_V: Float[np.ndarray, " V"]
    """float64, in the schema's order and units, NaN where missing; see `numbers`."""
    warnings: tuple[str, ...]
    """What a user should look at."""


def clinical_inputs(case: Case, config: Config, schema: Schema) -> ClinicalInputs:
    """Read and check the case's record as prediction and training do, and nothing else of the case.

    Raises:
        InputRejectedError: the record is missing, malformed or implausible; the case is named.
    """
    open_case(case.folder)
    record = read_clinical(case, schema)
    return ClinicalInputs(
        text=render(record, schema, config.clinical.rendering),
        numbers_V=numbers(record, schema),
        warnings=raise_on_error(check_units(record.values, schema), case.case_id),
    )


def numbers(record: ClinicalRecord, schema: Schema) -> Float[np.ndarray, " V"]:
    """The record's values: a number in the field's unit, a word as its place among the field's choices."""
    values = np.full(len(schema.fields), np.nan)
    for i, field in enumerate(schema.fields):
        value = record.values.get(field.name)
        if isinstance(value, str):
            values[i] = float((field.choices or (value,)).index(value))
        elif value is not None:
            values[i] = value
    return values
