"""Inputs from a clinical record alone: its text, and its values as numbers for models without a text encoder.

Used for cohorts without images, such as the table of a trial. V values, one per field of the schema.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np
from jaxtyping import Float

from tmi.toolkit.cases.case import Case, open_case
from tmi.toolkit.clinical.completeness import check_completeness
from tmi.toolkit.clinical.record import ClinicalRecord, read_clinical
from tmi.toolkit.clinical.rendering import field_spans, render, report_text, sentences
from tmi.toolkit.clinical.schema import Schema
from tmi.toolkit.clinical.units import check_units
from tmi.toolkit.config.schema import Config
from tmi.toolkit.issues.issue import Issue
from tmi.toolkit.qc.image_checks import raise_on_error


@dataclass(frozen=True, kw_only=True)
class ClinicalInputs:
    """Inputs from one clinical record, before any fitted scaling."""

    text: str
    """Clinical record as text."""
    numbers_V: Float[np.ndarray, " V"]
    """float64, in the schema's order and units, NaN where missing; see `numbers`."""
    warnings: tuple[Issue, ...]
    """Warnings of the checks."""
    report: str = ""
    """Free-text report at the end of `text`; empty if there is none."""
    spans: tuple[tuple[str | None, int, int], ...] = ()
    """Name, first character and one past the last of each field in `text`; the report's name is None."""


def clinical_inputs(case: Case, config: Config, schema: Schema) -> ClinicalInputs:
    """Read and check a case's clinical record as training and prediction do; no other file is read.

    Raises:
        InputRejectedError: the record is missing, malformed or implausible; carries the case id.
    """
    open_case(case.folder)
    record = read_clinical(case, schema)
    return ClinicalInputs(
        text=render(record, schema, config.clinical.rendering),
        numbers_V=numbers(record, schema),
        warnings=raise_on_error(
            chain(check_units(record.values, schema), check_completeness(record, schema)), case.case_id
        ),
        report=report_text(record),
        spans=tuple(field_spans(sentences(record, schema, config.clinical.rendering))),
    )


def numbers(record: ClinicalRecord, schema: Schema) -> Float[np.ndarray, " V"]:
    """Return the record's values: numbers in the field's unit, categories as their index in the field's choices."""
    values = np.full(len(schema.fields), np.nan)
    for i, field in enumerate(schema.fields):
        value = record.values.get(field.name)
        if isinstance(value, str):
            values[i] = float((field.choices or (value,)).index(value))
        elif value is not None:
            values[i] = value
    return values
