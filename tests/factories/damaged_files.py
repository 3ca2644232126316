"""Damaged copies of a file's bytes by seed: truncated, with flipped bits, exchanged or inserted parts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

KINDS = ("truncated", "bits", "run", "swapped", "header", "grown")


def mutant(data: bytes, seed: int) -> bytes:
    """One damaged copy; the seed determines the kind and the position of the damage."""
    rng = np.random.default_rng(seed)
    kind = KINDS[seed % len(KINDS)]
    changed = bytearray(data)
    size = len(changed)
    if kind == "truncated":
        return bytes(changed[: int(rng.integers(0, size))])
    if kind == "grown":
        at = int(rng.integers(0, size))
        return bytes(changed[:at] + rng.bytes(int(rng.integers(1, 64))) + changed[at:])
    reach = min(size, 1600) if kind == "header" else size
    if kind in ("bits", "header"):
        for at in rng.integers(0, reach, size=int(rng.integers(1, 12))):
            changed[at] ^= 1 << int(rng.integers(0, 8))
    elif kind == "run":
        at, length = int(rng.integers(0, reach)), int(rng.integers(1, 32))
        changed[at : at + length] = bytes([int(rng.choice([0, 255]))]) * len(changed[at : at + length])
    else:
        length = int(rng.integers(1, 64))
        one, other = (int(v) for v in rng.integers(0, max(1, size - length), size=2))
        changed[one : one + length], changed[other : other + length] = (
            changed[other : other + length], changed[one : one + length],
        )  # fmt: skip
    return bytes(changed)


def mutants(data: bytes, count: int, *, seed: int = 0) -> Iterator[bytes]:
    """`count` damaged copies with consecutive seeds."""
    for i in range(count):
        yield mutant(data, seed + i)
