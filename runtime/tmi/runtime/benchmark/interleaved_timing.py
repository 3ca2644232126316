"""Compare the durations of functions on a busy machine: interleaved rounds, ratios within a round, medians.

Two means that were measured one after the other compare the machine at two times. Here every round runs each function
once, in an order that is reversed after every round, so that a slow minute slows all of them. The ratio of two
functions is computed within each round; its median over the rounds is the result.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Duration of one function divided by that of another; below 1 it is faster."""

    median: float
    """Median over the rounds."""
    lower: float
    """First quartile over the rounds."""
    upper: float
    """Third quartile over the rounds."""
    lowest: float
    """Smallest value of a round."""
    highest: float
    """Largest value of a round."""


class InterleavedTimer:
    """Runs each function once a round and records its seconds."""

    def __init__(self, functions: Mapping[str, Callable[[], object]]) -> None:
        """Store the functions; nothing is run yet.

        Raises:
            ValueError: no function.
        """
        if not functions:
            raise ValueError("timing needs at least one function")
        self._functions = dict(functions)
        self._rounds = 0
        self.seconds: dict[str, list[float]] = {name: [] for name in functions}
        """Seconds of each function, one value for each round."""

    def run(self) -> None:
        """Run every function once."""
        # The order alternates, so that no function always runs right after the same one.
        for name in list(self._functions) if self._rounds % 2 == 0 else list(self._functions)[::-1]:
            start = perf_counter()
            self._functions[name]()
            self.seconds[name].append(perf_counter() - start)
        self._rounds += 1

    def discard_rounds(self) -> None:
        """Discard the rounds so far, as warm-up."""
        for values in self.seconds.values():
            values.clear()


def ratio(one: Sequence[float], other: Sequence[float]) -> Ratio:
    """`one` divided by `other`, round by round.

    Raises:
        ValueError: different numbers of rounds, or none.
    """
    rounds = [a / b for a, b in zip(one, other, strict=True)]
    if not rounds:
        raise ValueError("a ratio needs at least one round")
    return Ratio(
        median=statistics.median(rounds),
        lower=quantile(rounds, 0.25),
        upper=quantile(rounds, 0.75),
        lowest=min(rounds),
        highest=max(rounds),
    )


def quantile(values: Sequence[float], part: float) -> float:
    """The quantile `part` of the values, 0 to 1, with linear interpolation (numpy's default)."""
    ordered = sorted(values)
    position = part * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])
