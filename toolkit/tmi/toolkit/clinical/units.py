"""Values whose unit looks wrong: told by what the same number would be in another unit that the schema accepts.

Only the schema's data is used, so a schema for another disease is judged too. Texts name units, never a value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from tmi.toolkit.cases.case import CLINICAL_FILE
from tmi.toolkit.clinical.schema import Field, Schema, convert, plausible

FAR_FACTOR = 2.0
"""A value is far from the reference range when it lies beyond its ends by this factor."""


def other_units(field: Field, value: float, *, given: str | None) -> list[str]:
    """Units, the given one excepted, in which the number as written would be plausible."""
    units = [u for u in (field.unit, *field.accepted_units) if u and u != (given or field.unit)]
    numbers = {unit: convert(field, value, unit) for unit in units}
    return [u for u, n in numbers.items() if n is not None and math.isfinite(n) and plausible(field, n)]


def check_units(values: Mapping[str, float | str | None], schema: Schema) -> Iterator[tuple[str, str, str]]:
    """Plausible values that are far from the reference range and would lie in it in another unit."""
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
                yield (
                    "clinical-unit-doubt",
                    f"{CLINICAL_FILE}: {field.name} is far from usual in {field.unit} and would be usual in {unit}",
                    f'look at the source; where it is {unit}, write {{"value": ..., "unit": "{unit}"}}',
                )
                break
