"""Holm's correction of k p-values: adjusted_(i) = max over j <= i of min(1, (k - j + 1) p_(j)). S. Holm 1979."""

from __future__ import annotations

from collections.abc import Sequence


def holm_correction(p: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values in the given order; None stays None and is not counted."""
    defined = [i for i, value in enumerate(p) if value is not None]
    ordered = sorted(defined, key=lambda i: float(p[i]))  # type: ignore[arg-type]
    adjusted: list[float | None] = [None] * len(p)
    running_max = 0.0
    for rank, i in enumerate(ordered):
        running_max = max(running_max, min(1.0, (len(ordered) - rank) * float(p[i])))  # type: ignore[arg-type]
        adjusted[i] = running_max
    return adjusted
