"""Comparing durations on a machine that is never quiet: roads in turn, ratios pair by pair, medians.

Two means taken one after the other compare the machine at two times. Here every round runs each road once, in an order
that is turned round after every round, so that a slower minute slows all of them; the ratio is taken inside a round and
the median over the rounds is what counts.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times as long one road took as another; below 1 it was quicker."""

    median: float
    """Over the rounds."""
    lowest: float
    """The smallest of a round."""
    highest: float
    """The largest of a round."""


def interleaved(
    roads: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int = 1
) -> dict[str, tuple[float, ...]]:
    """Seconds of each road in every round; `warmup` rounds go before and are not counted.

    Raises:
        ValueError: no road, or no round.
    """
    if not roads or repeats < 1:
        raise ValueError("interleaved timing needs a road and a round")
    seconds: dict[str, list[float]] = {name: [] for name in roads}
    for number in range(-warmup, repeats):
        for name in list(roads) if number % 2 == 0 else list(roads)[::-1]:
            start = perf_counter()
            roads[name]()
            if number >= 0:
                seconds[name].append(perf_counter() - start)
    return {name: tuple(values) for name, values in seconds.items()}


def ratio(one: Sequence[float], other: Sequence[float]) -> Ratio:
    """`one` over `other`, round by round.

    Raises:
        ValueError: the two have not the same number of rounds, or none.
    """
    rounds = [a / b for a, b in zip(one, other, strict=True)]
    if not rounds:
        raise ValueError("a ratio needs a round")
    return Ratio(median=statistics.median(rounds), lowest=min(rounds), highest=max(rounds))


def quantile(values: Sequence[float], part: float) -> float:
    """The value below which `part` of the values lie, linear between neighbours (numpy's default)."""
    ordered = sorted(values)
    place = part * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
