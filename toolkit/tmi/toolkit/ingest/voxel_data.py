"""Voxels of an NRRD or MetaImage file: the facts of a validated header, and a bounded read of the declared bytes.

`nrrd` and `metaimage` parse and validate the text header; this module reads the voxels. No native reader gets the file:
ITK crashes on some headers, and returns uninitialised memory for others. A volume is returned only if the data file
contains exactly as many bytes as the header declares.
"""

from __future__ import annotations

import bz2
import math
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.imaging.nifti import DEFLATE_RATIO, MAX_VOXELS
from tmi.toolkit.storage.bounded_files import IMAGE_BYTES, open_regular

MAX_HEADER_BYTES = 4 * 2**20
"""Limit on the text of a header."""
CHUNK_BYTES = 2**20
ORTHONORMAL_TOLERANCE = 1e-3


class HeaderError(ValueError):
    """A header or its data that cannot be used; `read_image` converts it to the error of the case."""

    def __init__(self, what: str, *, fix: str = "export the file again", code: str = "unreadable") -> None:
        """Store the problem (which follows the name of the file), its fix, and the suffix of the error code."""
        super().__init__(what)
        self.what, self.fix, self.code = what, fix, code


@dataclass(frozen=True, kw_only=True)
class VoxelHeader:
    """Facts of a validated header."""

    shape_xyz: tuple[int, int, int]
    """Number of voxels along the stored axes; the first one varies fastest."""
    dtype: np.dtype[Any]
    """Type and byte order of a stored voxel."""
    affine_xyz: NDArray[np.float64]
    """4x4, stored (x, y, z) index -> RAS+, in `unit`."""
    path: Path
    """File that contains the voxels: the header's own, or another one in its folder."""
    offset: int
    """Offset of the data in the file, in bytes; -1: the data are the file's last bytes."""
    encoding: str
    """`raw`, `deflate` (zlib or gzip) or `bzip2`."""
    skip: int = 0
    """Bytes to skip after decoding."""
    unit: str = "unknown"
    """Unit of length: `mm`, `meter`, `micron`, `centimetre` or `unknown`."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Key-value pairs of an NRRD header."""


def header_size(sizes: Sequence[int]) -> tuple[int, int, int]:
    """Return three validated sizes.

    Raises:
        HeaderError: the sizes are not those of one plausible 3D volume.
    """
    if len(sizes) != 3:
        raise HeaderError(f"has {len(sizes)} axes", fix="give one 3D volume with one value per voxel", code="not-3d")
    if min(sizes) < 1 or max(sizes) > MAX_VOXELS or math.prod(sizes) > MAX_VOXELS:
        raise HeaderError("declares an implausible size")
    return sizes[0], sizes[1], sizes[2]


def numbers(text: str, count: int, what: str) -> list[float]:
    """Return the `count` finite numbers of a field of a header.

    Raises:
        HeaderError: the text does not consist of `count` plausible numbers.
    """
    try:
        values = [float(v) for v in text.split()]
    except ValueError:
        values = []
    if len(values) != count or not all(math.isfinite(v) and abs(v) < 1e9 for v in values):
        raise HeaderError(f"has a header whose {what} is not {count} numbers")
    return values


def integers(text: str, what: str) -> list[int]:
    """Return the integers of a field of a header.

    Raises:
        HeaderError: the text contains anything but integers of at most ten digits.
    """
    tokens = text.split()
    if not tokens or any(len(t) > 11 or not t.removeprefix("-").isdecimal() or not t.isascii() for t in tokens):
        raise HeaderError(f"has a header whose {what} is not integers")
    return [int(t) for t in tokens]


def data_file(header: Path, name: str) -> Path:
    """Return the data file that a header names; it must be a regular file in the folder of the header.

    Raises:
        HeaderError: the header names several files, a pattern, or a file that is missing, special, or outside its
            folder.
    """
    if not name or "%" in name or name.split()[0].upper() == "LIST":
        raise HeaderError(
            "names no single data file, but a list or a pattern",
            fix="save the volume as one file (.nrrd, .mha or .nii.gz)",
        )
    outside = HeaderError(
        "names a data file outside its own folder", fix="put header and data file into one folder, or save one file"
    )
    if "\0" in name or "\\" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise outside
    path = header.parent / name
    # a linked header may stand beside its data in the folder of either
    folders = (header.parent.resolve(), header.resolve().parent)
    try:
        resolved = path.resolve()
    except (OSError, RuntimeError) as error:  # a loop of links
        raise outside from error
    if not any(resolved.is_relative_to(folder) for folder in folders):
        raise outside
    if not resolved.exists():
        raise HeaderError("names a data file that does not exist", fix="put the data file beside its header")
    if not resolved.is_file():
        raise HeaderError("names a data file that is no regular file", fix="put the data file beside its header")
    if resolved == header.resolve():
        raise HeaderError("names itself as its data file")
    return resolved


def read_voxels(header: VoxelHeader) -> NDArray[np.generic]:
    """Read the voxels of a validated header.

    Returns:
        [x, y, z] in the stored order of the axes and native byte order.

    Raises:
        HeaderError: the data file holds fewer or more bytes than the header declares, or is damaged.
        OSError: the file cannot be read.
    """
    need = math.prod(header.shape_xyz) * header.dtype.itemsize
    with open_regular(header.path, max_bytes=IMAGE_BYTES) as stream:
        size = os.fstat(stream.fileno()).st_size
        offset = size - need if header.offset < 0 else header.offset
        available = max(0, size - offset)
        ratio = {"raw": 1, "deflate": DEFLATE_RATIO}.get(header.encoding)
        # checked before the array is allocated; bzip2 has no useful bound
        if offset < 0 or (ratio is not None and need + header.skip > available * ratio):
            raise HeaderError("holds fewer voxels than its header declares", fix="copy or export the file again")
        stream.seek(offset)
        data = np.empty(need, dtype=np.uint8)
        _fill(stream, header, data)
    voxels = data.view(header.dtype).reshape(header.shape_xyz, order="F")
    return voxels.astype(header.dtype.newbyteorder("="), copy=False)


def _fill(stream: BinaryIO, header: VoxelHeader, data: NDArray[np.uint8]) -> None:
    """Decode the stream, skip `header.skip` bytes and fill `data`; the decoded stream must end with `data`."""
    skip, filled = header.skip, 0
    for chunk in _decoded(stream, header.encoding):
        part = memoryview(chunk)[skip:]
        skip -= min(skip, len(chunk))
        if filled + len(part) > data.size:
            raise HeaderError(
                "holds more bytes than its header declares", fix="correct the size in the header, or export it again"
            )
        data[filled : filled + len(part)] = part
        filled += len(part)
    if filled < data.size:
        raise HeaderError("holds fewer voxels than its header declares", fix="copy or export the file again")


def _decoded(stream: BinaryIO, encoding: str) -> Iterator[bytes]:
    """Yield decoded chunks of at most `CHUNK_BYTES`; a compressed stream must be complete."""
    if encoding == "raw":
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk
        return
    damaged = HeaderError("is truncated or damaged", fix="copy or export the file again")
    try:
        if encoding == "bzip2":
            bz_decoder, chunk = bz2.BZ2Decompressor(), b""
            while not bz_decoder.eof:
                if bz_decoder.needs_input and not (chunk := stream.read(CHUNK_BYTES)):
                    raise damaged
                yield bz_decoder.decompress(chunk if bz_decoder.needs_input else b"", CHUNK_BYTES)
            return
        # 47 = 32 + 15: zlib or gzip header, detected automatically
        decoder = zlib.decompressobj(47)
        while not decoder.eof:
            chunk = decoder.unconsumed_tail or stream.read(CHUNK_BYTES)
            decoded = decoder.decompress(chunk, CHUNK_BYTES)  # an empty chunk flushes what the decoder holds back
            if not chunk and not decoded and not decoder.eof:
                raise damaged
            yield decoded
    except (zlib.error, OSError, EOFError, ValueError) as error:
        raise damaged from error
