"""Comparing durations on a machine that is never quiet: functions in turn, ratios pair by pair, medians.

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
    lower: float
    """A quarter of the rounds lie below."""
    upper: float
    """A quarter of the rounds lie above."""
    lowest: float
    """The smallest of a round."""
    highest: float
    """The largest of a round."""


class InterleavedTimer:
    """Runs its functions once a round and keeps the seconds of each."""

    def __init__(self, functions: Mapping[str, Callable[[], object]]) -> None:
        """Nothing runs yet.

        Raises:
            ValueError: no road.
        """
        if not functions:
            raise ValueError("timing in rounds needs a road")
        self._functions = dict(functions)
        self._rounds = 0
        self.seconds: dict[str, list[float]] = {name: [] for name in functions}
        """Seconds of each road, a value for each round."""

    def run(self) -> None:
        """One round of all functions."""
        for name in list(self._functions) if self._rounds % 2 == 0 else list(self._functions)[::-1]:
            start = perf_counter()
            self._functions[name]()
            self.seconds[name].append(perf_counter() - start)
        self._rounds += 1

    def discard_rounds(self) -> None:
        """Leave the rounds so far out: they warmed up."""
        for values in self.seconds.values():
            values.clear()


def ratio(one: Sequence[float], other: Sequence[float]) -> Ratio:
    """`one` over `other`, round by round.

    Raises:
        ValueError: the two have not the same number of rounds, or none.
    """
    rounds = [a / b for a, b in zip(one, other, strict=True)]
    if not rounds:
        raise ValueError("a ratio needs a round")
    return Ratio(
        median=statistics.median(rounds),
        lower=quantile(rounds, 0.25),
        upper=quantile(rounds, 0.75),
        lowest=min(rounds),
        highest=max(rounds),
    )


def quantile(values: Sequence[float], part: float) -> float:
    """The value below which `part` of the values lie, linear between neighbours (numpy's default)."""
    ordered = sorted(values)
    place = part * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
