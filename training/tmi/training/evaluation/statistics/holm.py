"""Holm's correction of several p-values: adjusted_(i) = max over j <= i of min(1, (k - j + 1) p_(j)). S. Holm 1979."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p: Sequence[float | None]) -> list[float | None]:
    """The adjusted p-values, in the order given; None stays None and does not count."""
    known = [i for i, value in enumerate(p) if value is not None]
    ordered = sorted(known, key=lambda i: float(p[i]))  # type: ignore[arg-type]
    adjusted: list[float | None] = [None] * len(p)
    highest = 0.0
    for rank, i in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - rank) * float(p[i])))  # type: ignore[arg-type]
        adjusted[i] = highest
    return adjusted
