"""Shards: parts of a cohort that several machines process side by side, each with the same command.

A case belongs to the shard that the hash of its id gives. The assignment depends on the id and on the number of shards
alone, so a cohort that grows keeps the shards of its earlier cases, and no machine needs to know what the others do.
Shards are therefore equal in size only on average.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from tmi.toolkit.cases.case import Case
from tmi.toolkit.errors import UsageError

MAX_SHARDS = 100_000
"""Largest number of shards."""
_SHARD = re.compile(r"([0-9]{1,6})/([0-9]{1,6})", re.ASCII)
_HASH_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One of `count` parts of a cohort; the first is number 1."""

    number: int
    """Number of the part, from 1 to `count`."""
    count: int
    """Number of parts."""

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count <= MAX_SHARDS:
            raise UsageError(
                f"shard {self.number}/{self.count} does not exist",
                fix=f"give I/N with I from 1 to N, and N at most {MAX_SHARDS}; for an index that starts at 0, add 1",
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `I/N`, as `--shard` takes it.

        Raises:
            UsageError: the text has another form, or I is not from 1 to N.
        """
        match = _SHARD.fullmatch(text.strip())
        if match is None:
            raise UsageError(f"--shard {text[:40]!r} is not I/N", fix="give for example 3/10: the third of ten parts")
        return cls(number=int(match[1]), count=int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def holds(self, case_id: str) -> bool:
        """Whether a case belongs to this shard."""
        return shard_number(case_id, self.count) == self.number

    def select(self, cases: Iterable[Case]) -> list[Case]:
        """Return the cases of this shard, in the given order."""
        return [case for case in cases if self.holds(case.case_id)]


def shard_number(case_id: str, count: int) -> int:
    """Number, from 1 to `count`, of the shard of a case: the first 8 bytes of the SHA-256 of its id, modulo `count`."""
    digest = hashlib.sha256(case_id.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:_HASH_BYTES], "big") % count + 1
