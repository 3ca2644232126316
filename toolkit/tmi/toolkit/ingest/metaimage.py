"""Parser of MetaImage headers (`.mha`, `.mhd`).

The header consists of lines `Key = value`; `ElementDataFile` is the last one. Only what describes one 3D volume of
scalars in one file is accepted. Geometry is LPS: world = Offset + sum of index * spacing * row of TransformMatrix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.ingest.voxel_data import (
    MAX_HEADER_BYTES,
    ORTHONORMAL_TOLERANCE,
    HeaderError,
    VoxelHeader,
    data_file,
    header_size,
    integers,
    numbers,
)
from tmi.toolkit.storage.bounded_files import open_regular

TYPES: Mapping[str, str] = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
"""Element type -> numpy type. MET_LONG is missing: its size depends on the machine that wrote the file."""
ALIASES = (
    ("TransformMatrix", "Rotation", "Orientation"),
    ("Offset", "Position", "Origin"),
    ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"),
)
"""Keys of one meaning; at most one of each group may occur."""
UNITS: Mapping[str, str] = {"mm": "mm", "cm": "centimetre", "um": "micron"}
OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "I": "S", "S": "I"}


def read_metaimage_header(path: Path) -> VoxelHeader:
    """Read and validate the header of a MetaImage file.

    Raises:
        HeaderError: the header is malformed, or describes something else than one 3D volume in one file.
        OSError: the file cannot be read.
    """
    with open_regular(path) as stream:
        text = stream.read(MAX_HEADER_BYTES)
    fields, end = _fields(text)
    if fields.get("ObjectType", "Image") != "Image":
        raise HeaderError("holds no image")
    for key, allowed in (("ElementNumberOfChannels", "1"), ("HeaderSizePerSlice", "0")):
        if fields.get(key, allowed) != allowed:
            code = "not-3d" if key == "ElementNumberOfChannels" else "unreadable"
            raise HeaderError(f"has another {key} than {allowed}", fix="give one value per voxel", code=code)
    _require_unscaled(fields)
    sizes, axes = integers(fields.get("DimSize", ""), "DimSize"), integers(fields.get("NDims", ""), "NDims")
    if axes != [len(sizes)]:
        raise HeaderError("has a header whose DimSize and NDims differ")
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    kind = TYPES.get(fields.get("ElementType", ""))
    if kind is None:
        raise HeaderError("has voxels of a type that is not read", fix="save it as MET_SHORT or MET_FLOAT")
    if not _flag(fields, "BinaryData", default=True):
        raise HeaderError("holds voxels as text", fix="save it as binary")
    compressed = _flag(fields, "CompressedData", default=False)
    path, offset = _location(path, fields, end, compressed=compressed)
    return VoxelHeader(
        shape_xyz=header_size(sizes),
        dtype=np.dtype((">" if _flag(fields, *ALIASES[2], default=False) else "<") + kind),
        affine_xyz=_affine(fields, axes[0]),
        path=path,
        offset=offset,
        encoding="deflate" if compressed else "raw",
        unit=UNITS.get(fields.get("DistanceUnits", "").casefold(), "unknown"),
    )


def _fields(data: bytes) -> tuple[dict[str, str], int]:
    """Return the fields of the header and the offset of the byte that follows it."""
    fields: dict[str, str] = {}
    position = 0
    while True:
        end = data.find(b"\n", position)
        # a detached header may end without a newline
        line = data[position : end if end >= 0 else len(data)]
        key, equals, value = (p.strip() for p in line.decode("latin-1").partition("="))
        position = end + 1 if end >= 0 else len(data)
        if equals and key in fields:
            raise HeaderError(f"has {key[:40]!r} twice in its header" if key.isalnum() else "has a key twice")
        if equals:
            fields[key] = value
        elif line.strip():
            raise HeaderError("has a header with a line that is no field")
        if key == "ElementDataFile":
            break
        if end < 0:
            raise HeaderError("has no ElementDataFile in its header")
    for names in ALIASES:
        if sum(name in fields for name in names) > 1:
            raise HeaderError(f"has both {' and '.join(n for n in names if n in fields)} in its header")
    return fields, position


def _require_unscaled(fields: Mapping[str, str]) -> None:
    """Reject a slope or an intercept: ITK ignores them, so programs differ in the values of such a file."""
    for key, neutral in (("ElementToIntensityFunctionSlope", 1.0), ("ElementToIntensityFunctionOffset", 0.0)):
        if key in fields and numbers(fields[key], 1, key) != [neutral]:
            raise HeaderError(
                f"has a header with {key}, which programs apply or ignore", fix="apply it, and save without it"
            )


def _flag(fields: Mapping[str, str], *keys: str, default: bool) -> bool:
    value = next((fields[k] for k in keys if k in fields), str(default)).casefold()
    if value not in ("true", "false", "1", "0"):
        raise HeaderError(f"has a header whose {keys[0]} is neither True nor False")
    return value in ("true", "1")


def _location(path: Path, fields: Mapping[str, str], end: int, *, compressed: bool) -> tuple[Path, int]:
    """Return the data file and the offset of the data in it."""
    name = fields["ElementDataFile"]
    skip = integers(fields.get("HeaderSize", "0"), "HeaderSize")[0]
    local = name.upper() == "LOCAL"
    if skip < -1 or (skip and local) or (skip < 0 and compressed):
        raise HeaderError("has a HeaderSize that is not possible")
    return (path, end) if local else (data_file(path, name), skip)


def _affine(fields: Mapping[str, str], axes: int) -> NDArray[np.float64]:
    """Return the 4x4 affine, index -> RAS+ mm."""
    spacing = next((fields[k] for k in ("ElementSpacing", "ElementSize") if k in fields), None)
    matrix = next((fields[k] for k in ALIASES[0] if k in fields), None)
    if spacing is None or matrix is None:
        raise HeaderError(
            f"has a header without {'ElementSpacing' if spacing is None else 'TransformMatrix'}: its "
            f"{'voxel size' if spacing is None else 'orientation'} is not known",
            fix="export it again with its geometry, or add the line if you know it",
            code="affine",
        )
    sizes = np.array(numbers(spacing, axes, "ElementSpacing"))[:3]
    rows = np.array(numbers(matrix, axes * axes, "TransformMatrix")).reshape(axes, axes)[:3, :3]
    origin = next((fields[k] for k in ALIASES[1] if k in fields), " ".join("0" * axes))
    if sizes.min() <= 0 or np.abs(np.linalg.norm(rows, axis=1) - 1).max() > ORTHONORMAL_TOLERANCE:
        raise HeaderError("has no usable geometry", fix="export it again", code="affine")
    affine = np.eye(4)
    affine[:3, :3] = rows.T * sizes
    affine[:3, 3] = numbers(origin, axes, "Offset")[:3]
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    _require_same_letters(fields.get("AnatomicalOrientation", ""), ras)
    return np.asarray(ras)


def _require_same_letters(letters: str, affine_ras: NDArray[np.float64]) -> None:
    """Reject a header whose AnatomicalOrientation contradicts its TransformMatrix.

    The letters name the directions where the axes start: RAI for axes that lead to left, posterior and superior.
    """
    letters = letters.upper()
    if len(letters) != 3 or not set(letters) <= set(OPPOSITE) or not math.isfinite(affine_ras.sum()):
        return
    linear = affine_ras[:3, :3] / np.linalg.norm(affine_ras[:3, :3], axis=0)
    if np.abs(linear).max(axis=0).min() < 0.8:  # tilted so far that the nearest axis is ambiguous
        return
    ends = nib.aff2axcodes(affine_ras)
    if None not in ends and letters != "".join(OPPOSITE[str(e)] for e in ends):
        raise HeaderError(
            "has a TransformMatrix and an AnatomicalOrientation that disagree",
            fix="export it again, or correct the wrong one; programs differ in which of the two they use",
            code="forms",
        )
