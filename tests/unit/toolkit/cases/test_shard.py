"""Shards: every case belongs to one, whatever else the cohort holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tmi.toolkit.cases.case import Case
from tmi.toolkit.cases.shard import MAX_SHARDS, Shard, shard_number
from tmi.toolkit.errors import UsageError


def _cases(count: int) -> list[Case]:
    return [Case(folder=Path(f"P{n:04}"), case_id=f"P{n:04}") for n in range(count)]


def test_shard_of_a_case_is_the_published_one():
    """The assignment is part of the format: logs of earlier versions are collected by later ones."""
    assert [shard_number(case_id, 10) for case_id in ("P001", "P002", "Müller", "A" * 200)] == [10, 3, 5, 9]


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_every_case_is_in_one_shard(count):
    """The shards of a division hold every case once, each in the order of the cohort."""
    cases = _cases(60)
    shards = [Shard(number=n, count=count).select(cases) for n in range(1, count + 1)]
    assert sorted((c for shard in shards for c in shard), key=lambda c: c.case_id) == cases
    assert all(shard == [c for c in cases if c in shard] for shard in shards)


def test_shards_are_of_similar_size():
    """Ten shards of 10,000 cases differ from 1,000 by less than five standard deviations of a binomial."""
    sizes = [len(Shard(number=n, count=10).select(_cases(10_000))) for n in range(1, 11)]
    assert max(abs(size - 1000) for size in sizes) < 5 * 30


def test_grown_cohort_keeps_its_shards():
    """Further cases change no shard of the earlier ones."""
    shard = Shard(number=2, count=5)
    assert [c for c in shard.select(_cases(90)) if c in _cases(30)] == shard.select(_cases(30))


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", f"1/{MAX_SHARDS + 1}"])
def test_shard_that_does_not_exist_is_rejected(text):
    """Numbers run from 1; the fix says so, because schedulers count from 0 too."""
    with pytest.raises(UsageError, match=f"shard {text} does not exist") as raised:
        Shard.parse(text)
    assert "starts at 0, add 1" in raised.value.fix


@pytest.mark.parametrize("text", ["", "3", "3/", "a/b", "1/4/2", "-1/4", "1.0/4", "٣/4"])
def test_malformed_shard_is_rejected(text):
    """Anything but I/N is wrong usage."""
    with pytest.raises(UsageError, match="is not I/N"):
        Shard.parse(text)


def test_shard_is_written_as_it_is_read():
    """`str` is the inverse of `parse`."""
    assert str(Shard.parse(" 3/10 ")) == "3/10"
