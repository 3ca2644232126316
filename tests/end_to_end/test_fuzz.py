"""Every reader ends in a value or a typed error, whatever the bytes of its file; `make fuzz` runs ten times as many."""

from __future__ import annotations

import os
import time

import pytest

from factories.fuzzing import runner
from factories.fuzzing.runner import Outcome, fuzz, mutant
from factories.fuzzing.targets import TARGETS, Target

MUTANTS = 2000
LIGHT = [name for name, entry in TARGETS.items() if not entry.torch]
"""Readers that do not import torch."""


@pytest.mark.timeout(600)
def test_mutants_end_in_a_value_or_a_typed_error():
    """2,000 mutants over every reader: no traceback, crash, hang over 10 s or memory over 4 GB."""
    outcome = fuzz(LIGHT, mutants=MUTANTS, jobs=len(os.sched_getaffinity(0)), patience=3.0)
    assert not outcome.findings, "\n".join(map(str, outcome.findings))
    assert sum(outcome.counts.values()) == MUTANTS
    assert outcome.counts["rejected"] > MUTANTS // 2, "mutants must do damage"


def test_numbers_give_the_same_mutants():
    """A finding can be repeated by its number."""
    valid = b'{"values": {"albumin": 38}, "report": null}'
    first = [mutant("record", number, valid) for number in range(50)]
    assert first == [mutant("record", number, valid) for number in range(50)]
    assert len(set(first)) > 25


FAULTS = {
    "traceback": lambda: [][0],
    "memory": lambda: len(bytearray(5 * 2**30)),
    "hang": lambda: time.sleep(60),
    "crash": lambda: os.abort(),
}


@pytest.mark.timeout(200)
@pytest.mark.parametrize("kind", FAULTS)
def test_planted_fault_is_one_finding(kind, monkeypatch):
    """A reader that fails on one mutant gives one finding of its kind, and the other mutants are read."""
    outcome = Outcome()

    def prepare(folder):
        (folder / "f").write_bytes(b"valid")

        def read():
            if (folder / "f").read_bytes() == b"bad":
                FAULTS[kind]()

        return read

    entry = Target("f", lambda rng, data: b"bad" if rng.random() < 0.4 else data, prepare)
    monkeypatch.setitem(TARGETS, "planted", entry)
    monkeypatch.setattr(runner, "LONGEST_S", 3.0)
    monkeypatch.setattr(runner, "START_METHOD", "fork")  # the worker has the planted target
    numbers = [n for n in range(40) if mutant("planted", n, b"valid") == b"bad"][:1]
    good = [n for n in range(40) if mutant("planted", n, b"valid") != b"bad"][:4]
    runner.fuzz_targets({"planted": [*good[:2], *numbers, *good[2:]]}, outcome, runner.threading.Lock())
    assert [(f.kind, f.number) for f in outcome.findings] == [(kind, numbers[0])]
    assert outcome.counts["accepted"] == len(good)
