"""Contributions as bars: one scale for all tables of a page, and a noise floor below which a bar means nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import floor, log10
from typing import Any

from tmi.runtime.explanation.results import Explanation

FLOOR = 0.01
"""Smallest noise floor in log-odds: such a change alters no probability by more than 0.0025."""
SMALLEST_SCALE = 10.0
"""Smallest scale as a multiple of the noise floor, so that contributions within the noise have short bars."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Scale of the bars of a page, in log-odds."""

    end: float
    """Value at either end of a bar's axis."""
    floor: float
    """Noise floor: the integration error of the contributions' sum, at least `FLOOR`."""

    @property
    def floor_percent(self) -> float:
        """Half the width of the band of noise, in percent of the axis."""
        return round(50.0 * self.floor / self.end, 2)

    def bar(self, name: str, text: str, value: float) -> dict[str, Any]:
        """Row of a table: name, text, value, class and the place of the bar in percent of the axis."""
        length = round(50.0 * min(1.0, abs(value) / self.end), 2)
        return {
            "name": name,
            "text": text,
            "value": value,
            "side": "noise" if abs(value) < self.floor else "bad" if value > 0 else "good",
            "start": 50.0 if value > 0 else round(50.0 - length, 2),
            "length": length,
        }


def noise_floor(explanation: Explanation) -> float:
    """Largest integration error of the folds' contributions, at least `FLOOR`."""
    errors = (abs(c["error"]) for fold in explanation.folds for c in fold.completeness.values())
    return max([FLOOR, *errors])


def common_scale(values: Iterable[float], floor: float) -> Scale:
    """Scale that holds every value; its end is 1, 2 or 5 times a power of ten."""
    return Scale(end=_rounded_up(max([SMALLEST_SCALE * floor, *map(abs, values)])), floor=floor)


def split_by_noise(rows: Sequence[dict[str, Any]], count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """At most `count` rows above the noise floor, and the other rows."""
    above = [row for row in rows if row["side"] != "noise"][:count]
    return above, [row for row in rows if row not in above]


def _rounded_up(value: float) -> float:
    power = 10.0 ** floor(log10(value))
    return next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= value * (1 - 1e-9))
