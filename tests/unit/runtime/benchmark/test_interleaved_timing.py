"""Rounds in turn, ratios round by round."""

from __future__ import annotations

import time

import numpy as np
import pytest

from tmi.runtime.benchmark.interleaved_timing import InterleavedTimer, quantile, ratio


def test_the_order_is_turned_round_after_every_round():
    ran: list[str] = []
    rounds = InterleavedTimer({"a": lambda: ran.append("a"), "b": lambda: ran.append("b")})
    for _ in range(3):
        rounds.run()
    assert ran == ["a", "b", "b", "a", "a", "b"]


def test_what_warmed_up_is_forgotten():
    rounds = InterleavedTimer({"a": lambda: None})
    rounds.run()
    rounds.discard_rounds()
    assert rounds.seconds == {"a": []}
    rounds.run()
    assert len(rounds.seconds["a"]) == 1


def test_a_planted_sleep_is_seen_and_a_slow_minute_is_not():
    naps = iter([0.02, 0.0, 0.0, 0.02])  # one slow round, in which both roads are slow

    def machine() -> None:
        time.sleep(0.005 + next(naps))

    rounds = InterleavedTimer({"slow": lambda: (machine(), time.sleep(0.02)), "plain": machine})
    for _ in range(2):
        rounds.run()
    assert ratio(rounds.seconds["slow"], rounds.seconds["plain"]).median > 1.5


def test_the_ratio_is_taken_round_by_round():
    found = ratio([1.0, 20.0, 3.0], [2.0, 10.0, 3.0])
    assert (found.lowest, found.median, found.highest) == (0.5, 1.0, 2.0)
    assert (found.lower, found.upper) == (0.75, 1.5)


@pytest.mark.parametrize("part", [0.0, 0.25, 0.5, 0.95, 1.0])
def test_quantiles_are_numpys(part):
    values = [3.0, 1.0, 4.0, 1.5, 9.0]
    assert quantile(values, part) == pytest.approx(float(np.quantile(values, part)))


def test_roads_of_different_lengths_have_no_ratio():
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        ratio([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="needs a round"):
        ratio([], [])
    with pytest.raises(ValueError, match="needs a road"):
        InterleavedTimer({})
