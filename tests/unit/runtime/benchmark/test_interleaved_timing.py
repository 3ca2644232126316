"""Interleaved rounds, and ratios within a round."""

from __future__ import annotations

import time

import numpy as np
import pytest

from tmi.runtime.benchmark.interleaved_timing import InterleavedTimer, quantile, ratio


def test_order_is_reversed_after_every_round():
    """Every second round runs the functions in reverse order."""
    ran: list[str] = []
    rounds = InterleavedTimer({"a": lambda: ran.append("a"), "b": lambda: ran.append("b")})
    for _ in range(3):
        rounds.run()
    assert ran == ["a", "b", "b", "a", "a", "b"]


def test_warm_up_rounds_are_discarded():
    """`discard_rounds` removes the seconds measured so far."""
    rounds = InterleavedTimer({"a": lambda: None})
    rounds.run()
    rounds.discard_rounds()
    assert rounds.seconds == {"a": []}
    rounds.run()
    assert len(rounds.seconds["a"]) == 1


def test_ratio_detects_a_slower_function():
    """The median ratio shows a slower function and is not affected by a round that is slow for all."""
    delays = iter([0.02, 0.0, 0.0, 0.02])  # one round in which both functions are slow

    def machine() -> None:
        time.sleep(0.005 + next(delays))

    rounds = InterleavedTimer({"slow": lambda: (machine(), time.sleep(0.02)), "reference": machine})
    for _ in range(2):
        rounds.run()
    assert ratio(rounds.seconds["slow"], rounds.seconds["reference"]).median > 1.5


def test_ratio_is_computed_within_rounds():
    """A ratio is computed round by round before median and quartiles."""
    ratios = ratio([1.0, 20.0, 3.0], [2.0, 10.0, 3.0])
    assert (ratios.lowest, ratios.median, ratios.highest) == (0.5, 1.0, 2.0)
    assert (ratios.lower, ratios.upper) == (0.75, 1.5)


@pytest.mark.parametrize("part", [0.0, 0.25, 0.5, 0.95, 1.0])
def test_quantile_equals_numpy(part):
    """`quantile` equals `numpy.quantile`."""
    values = [3.0, 1.0, 4.0, 1.5, 9.0]
    assert quantile(values, part) == pytest.approx(float(np.quantile(values, part)))


def test_invalid_rounds_are_rejected():
    """Different numbers of rounds, no round and no function are rejected."""
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        ratio([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="needs at least one round"):
        ratio([], [])
    with pytest.raises(ValueError, match="needs at least one function"):
        InterleavedTimer({})
