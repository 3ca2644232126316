"""Detects values that were probably given in a wrong unit, by converting the number from every other accepted unit.

The checks use the schema alone and thus apply to the schema of any disease. Messages contain units, never a value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from tmi.toolkit.cases.case import CLINICAL_FILE
from tmi.toolkit.clinical.schema import Field, Schema, accepted_unit, convert, plausible
from tmi.toolkit.issues.issue import Issue

FAR_FACTOR = 2.0
"""A value is far from the reference range if it is below its lower end / factor or above its upper end * factor."""


def other_units(field: Field, value: float, *, given: str | None) -> list[str]:
    """Accepted units other than the given one in which the number would be plausible."""
    used = field.unit if given is None else accepted_unit(field, given)
    units = [u for u in (field.unit, *field.accepted_units) if u and u != used]
    numbers = {unit: convert(field, value, unit) for unit in units}
    return [u for u, n in numbers.items() if n is not None and math.isfinite(n) and plausible(field, n)]


def check_units(values: Mapping[str, float | str | None], schema: Schema) -> Iterator[Issue]:
    """Yield an issue for each plausible value that is far from its reference range, and in it in another unit."""
    sex = values.get("sex")
    for field in schema.fields:
        value = values.get(field.name)
        ranges = [r for name, r in field.reference.items() if sex is None or name == sex]
        if not isinstance(value, float) or not ranges:
            continue
        low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
        if low / FAR_FACTOR <= value <= high * FAR_FACTOR:
            continue
        for unit in other_units(field, value, given=None):
            number = convert(field, value, unit)
            if number is not None and low <= number <= high:
                yield Issue.of(
                    "clinical-unit-doubt",
                    f"{CLINICAL_FILE}: {field.name} is far from its reference range in {field.unit} and inside it in "
                    f"{unit}",
                    f'check the source; if it is {unit}, write {{"value": ..., "unit": "{unit}"}}',
                )
                break
