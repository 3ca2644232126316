"""Cohorts with one damaged file by seed: headers, cells and JSON tokens replaced, bytes cut or flipped."""

from __future__ import annotations

import gzip
import random
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

Change = Callable[[random.Random, bytes], bytes]
FIELDS = {
    "sizeof_hdr": (0, "i"),
    "dim0": (40, "h"),
    "dim1": (42, "h"),
    "dim2": (44, "h"),
    "dim3": (46, "h"),
    "dim4": (48, "h"),
    "datatype": (70, "h"),
    "bitpix": (72, "h"),
    "qfac": (76, "f"),
    "pixdim1": (80, "f"),
    "pixdim3": (88, "f"),
    "vox_offset": (108, "f"),
    "scl_slope": (112, "f"),
    "scl_inter": (116, "f"),
    "xyzt_units": (123, "B"),
    "qform_code": (252, "h"),
    "sform_code": (254, "h"),
    "quatern_b": (256, "f"),
    "qoffset_x": (268, "f"),
    "srow_x0": (280, "f"),
    "srow_x3": (292, "f"),
    "srow_y1": (300, "f"),
    "srow_z2": (320, "f"),
    "magic": (344, "i"),
}
"""Field of a NIfTI-1 header -> its offset in bytes and its `struct` type."""
NUMBERS = {
    "f": [0.0, -1.0, 1e-30, 1e30, 3.4e38, float("nan"), float("inf"), float("-inf"), 0.5, -1024.0, 352.5, 2.0**31],
    "h": [0, -1, 1, 2, 7, 8, 127, 255, 512, 768, 1024, 1792, 2048, 2304, 32767, -32768],
    "i": [0, -1, 540, 1543569408, 2**31 - 1],
    "B": [0, 1, 2, 3, 255],
}
TOKENS = [
    b"NaN",
    b"1e999",
    b"-Infinity",
    b"9" * 5000,
    b"null",
    b"true",
    b"[]",
    b"{}",
    b'"\\ud800"',
    b'"\x00"',
    b"[" * 3000,
    b'{"value": 1, "unit": 2}',
    b'{"value": [], "unit": "g/dL"}',
    b"-0",
    b"0x10",
    b"\xff\xfe",
    b'""',
    b"1_000",
]
CELLS = [
    b"",
    b"nan",
    b"inf",
    b"-1e400",
    b'"',
    b"\x00",
    b"\xff",
    b"1;2",
    b"\n",
    b"\r",
    b"9" * 200_000,
    b",,,",
    b"'",
    b"1e5e5",
    "\u202e".encode(),
    b"=1+1",
    b"../C0",
    b"\t",
]


def _header(rng: random.Random, data: bytes) -> bytes:
    raw = bytearray(gzip.decompress(data))
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        offset, kind = FIELDS[rng.choice(sorted(FIELDS))]
        struct.pack_into("<" + kind, raw, offset, rng.choice(NUMBERS[kind]))
    return gzip.compress(bytes(raw), 1)


def _header_noise(rng: random.Random, data: bytes) -> bytes:
    raw = bytearray(gzip.decompress(data))
    for _ in range(rng.randint(1, 12)):
        raw[rng.randrange(352)] = rng.randrange(256)
    return gzip.compress(bytes(raw), 1)


def _truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.choice([0, 1, 9, 10, 18, len(data) // 2, len(data) - 1, rng.randrange(len(data))])]


def _truncate_inside(rng: random.Random, data: bytes) -> bytes:
    raw = gzip.decompress(data)
    return gzip.compress(raw[: rng.choice([0, 3, 4, 347, 348, 351, 352, 353, rng.randrange(len(raw))])], 1)


def _flip(rng: random.Random, data: bytes) -> bytes:
    raw = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        raw[rng.randrange(min(len(raw), rng.choice([16, len(raw)])))] ^= 1 << rng.randrange(8)
    return bytes(raw)


def _append(rng: random.Random, data: bytes) -> bytes:
    return data + rng.choice([b"\0" * 64, b"junk", data[:200], data])


def _json_token(rng: random.Random, data: bytes) -> bytes:
    colon = rng.choice([i for i, b in enumerate(data) if b in b":,"])
    end = next((i for i in range(colon + 1, len(data)) if data[i] in b",}]"), len(data))
    return data[: colon + 1] + rng.choice(TOKENS) + data[end:]


def _json_whole(rng: random.Random, data: bytes) -> bytes:
    return rng.choice([*TOKENS, b"", b'{"values": 3}', b'{"values": {"albumin": 1e308}}', b'{"source": 1}'])


def _cell(rng: random.Random, data: bytes) -> bytes:
    cut = rng.choice([i for i, b in enumerate(data) if b in b",\n"])
    end = next((i for i in range(cut + 1, len(data)) if data[i] in b",\n"), len(data))
    return data[: cut + 1] + rng.choice(CELLS) + data[end:]


IMAGE: tuple[Change, ...] = (_header, _header, _header, _header_noise, _truncate, _truncate_inside, _flip, _append)
JSON: tuple[Change, ...] = (_json_token, _json_token, _json_whole, _truncate, _flip, _append)
CSV: tuple[Change, ...] = (_cell, _cell, _truncate, _flip, _append)
TARGETS: Mapping[str, tuple[Change, ...]] = {
    "C0/ct.nii.gz": IMAGE,
    "C0/liver.nii.gz": IMAGE,
    "C0/clinical.json": JSON,
    "C0/case.json": JSON,
    "C0/radiomics.csv": CSV,
    "cohort.csv": CSV,
}
"""File of the cohort -> possible damages; a repeated one is more frequent."""


def write_mutant(good: Path, folder: Path, seed: int) -> str:
    """Write a copy of the cohort with one damaged file, and describe the damage; a seed gives the same bytes."""
    rng = random.Random(seed)
    shutil.copytree(good, folder)
    name = rng.choice([*TARGETS, "C0/ct.nii.gz", "C0/liver.nii.gz"])
    change = rng.choice(TARGETS[name])
    path = folder / name
    path.write_bytes(change(rng, path.read_bytes()))
    return f"seed {seed}: {name} {change.__name__.strip('_')}"
