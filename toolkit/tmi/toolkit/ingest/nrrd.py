"""Parser of NRRD headers (`.nrrd`, `.nhdr`), after the format's specification of teem.sourceforge.net/nrrd.

Lines are comments (`#`), fields (`name: value`) or metadata (`key:=value`); a blank line ends the header. Only what
describes one 3D volume of scalars in one file, in a space that names the patient's axes, is accepted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.ingest.voxel_data import (
    MAX_HEADER_BYTES,
    HeaderError,
    VoxelHeader,
    data_file,
    header_size,
    integers,
    numbers,
)
from tmi.toolkit.storage.bounded_files import open_regular

TYPES: Mapping[str, str] = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    "float": "f4", "double": "f8",
}  # fmt: skip
ENCODINGS: Mapping[str, str] = {"raw": "raw", "gz": "deflate", "gzip": "deflate", "bz2": "bzip2", "bzip2": "bzip2"}
SPACES: Mapping[str, tuple[float, float, float]] = {
    "right-anterior-superior": (1, 1, 1), "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1), "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1), "lps": (-1, -1, 1),
}  # fmt: skip
"""Space -> signs that turn its coordinates into RAS+."""
UNITS: Mapping[str, str] = {
    "mm": "mm", "millimeter": "mm", "millimeters": "mm", "m": "meter", "meter": "meter", "cm": "centimetre",
    "um": "micron", "µm": "micron", "micron": "micron",
}  # fmt: skip
FIELDS = frozenset(
    (
        "type,dimension,sizes,spacings,space,space dimension,space directions,space origin,space units,endian,encoding,"
        "data file,line skip,byte skip,kinds,centers,measurement frame,units,content,thicknesses,axis mins,axis maxs,"
        "labels,block size,min,max,old min,old max,number,sample units"
    ).split(",")
)
SYNONYMS = {
    "datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip", "centerings": "centers",
    "axismins": "axis mins", "axismaxs": "axis maxs", "oldmin": "old min", "oldmax": "old max",
    "blocksize": "block size", "sampleunits": "sample units",
}  # fmt: skip
VECTOR = re.compile(r"none|\([^()]*\)")


def read_nrrd_header(path: Path) -> VoxelHeader:
    """Read and validate the header of an NRRD file.

    Raises:
        HeaderError: the header is malformed, or describes something else than one 3D volume in one file.
        OSError: the file cannot be read.
    """
    with open_regular(path) as stream:
        data = stream.read(MAX_HEADER_BYTES)
    fields, metadata, end = _fields(data)
    if {"old min", "old max"} & set(fields):
        raise HeaderError(
            "has a header with `old min` or `old max`, which programs apply or ignore",
            fix="apply the scaling, and save without it",
        )
    sizes = integers(fields.get("sizes", ""), "sizes")
    if integers(fields.get("dimension", ""), "dimension") != [len(sizes)]:
        raise HeaderError("has a header whose dimension and sizes differ")
    if len(sizes) < 3:
        raise HeaderError(f"has {len(sizes)} axes", fix="give one 3D volume", code="not-3d")
    affine, spatial = _affine(fields, len(sizes))
    if any(n != 1 for n, is_spatial in zip(sizes, spatial, strict=True) if not is_spatial):
        raise HeaderError(
            "has several values per voxel", fix="give one 3D volume with one value per voxel", code="not-3d"
        )
    kind = TYPES.get(fields.get("type", "").casefold())
    encoding = ENCODINGS.get(fields.get("encoding", "").casefold())
    if kind is None or encoding is None:
        what = "voxels of a type" if kind is None else "an encoding"
        raise HeaderError(f"has {what} that is not read", fix="save it as short or float, raw or gzip")
    endian = fields.get("endian", "little" if kind.endswith("1") else "").casefold()
    if endian not in ("little", "big"):
        raise HeaderError("has a header without its byte order (endian)")
    location, offset, skip = _location(path, fields, end, encoding)
    return VoxelHeader(
        shape_xyz=header_size([n for n, is_spatial in zip(sizes, spatial, strict=True) if is_spatial]),
        dtype=np.dtype(("<" if endian == "little" else ">") + kind),
        affine_xyz=affine,
        path=location,
        offset=offset,
        encoding=encoding,
        skip=skip,
        unit=_unit(fields),
        metadata=metadata,
    )


def _fields(data: bytes) -> tuple[dict[str, str], dict[str, str], int]:
    """Return the fields, the metadata, and the offset of the byte that follows the header (-1: no blank line)."""
    first = data[: data.find(b"\n") + 1].strip()
    if not re.fullmatch(rb"NRRD000[1-5]", first):
        raise HeaderError("has no NRRD header")
    fields: dict[str, str] = {}
    metadata: dict[str, str] = {}
    position = data.find(b"\n") + 1
    while position < len(data):
        end = data.find(b"\n", position)
        line = data[position : end if end >= 0 else len(data)].decode("utf-8", "replace").rstrip("\r")
        position = end + 1 if end >= 0 else len(data)
        if not line:
            return fields, metadata, position
        if line.startswith("#"):
            continue
        key, assigned, value = line.partition(":=")
        name, colon, text = line.partition(": ")
        if assigned and (not colon or len(key) < len(name)):
            if key in metadata:
                raise HeaderError("has a key twice in its header")
            metadata[key] = value.replace("\\n", "\n").replace("\\\\", "\\")
            continue
        name = SYNONYMS.get(name.strip().casefold(), name.strip().casefold())
        if not colon or name not in FIELDS or name in fields:
            raise HeaderError("has a header with a line that is no field, an unknown one, or one that occurs twice")
        fields[name] = text.strip()
    if len(data) >= MAX_HEADER_BYTES:
        raise HeaderError("has a header that is too long")
    return fields, metadata, -1


def _location(path: Path, fields: Mapping[str, str], end: int, encoding: str) -> tuple[Path, int, int]:
    """Return the data file, the offset of the data in it, and the bytes to skip after decoding."""
    if fields.get("line skip", "0") != "0":
        raise HeaderError("has a header with `line skip`", fix="save the volume as one file (.nrrd or .nii.gz)")
    skip = integers(fields.get("byte skip", "0"), "byte skip")[0]
    if skip < -1 or skip >= 2**32 or (skip < 0 and encoding != "raw"):
        raise HeaderError("has a `byte skip` that is not possible")
    if "data file" in fields:
        location, start = data_file(path, fields["data file"]), 0
    elif end < 0:
        raise HeaderError("holds no voxels and names no data file")
    else:
        location, start = path, end
    return location, -1 if skip < 0 else start, max(skip, 0)


def _affine(fields: Mapping[str, str], axes: int) -> tuple[NDArray[np.float64], list[bool]]:
    """Return the 4x4 affine, index -> RAS+, and which of the axes are spatial."""
    signs = SPACES.get(fields.get("space", "").casefold())
    if signs is None or "space directions" not in fields:
        missing = "space directions" if signs is not None else "a `space` that names the patient's axes"
        raise HeaderError(
            f"has a header without {missing}: its orientation is not known",
            fix="export it again with its geometry, or add the line (`space: left-posterior-superior`) if you know it",
            code="affine",
        )
    for key in ("spacings", "axis mins", "axis maxs"):  # the specification excludes them beside space directions
        if any(v.casefold() != "nan" for v in fields.get(key, "").split()):
            raise HeaderError(
                f"has a header with both `space directions` and `{key}`",
                fix="delete the wrong one; programs differ in which of the two they use",
                code="forms",
            )
    text = fields["space directions"]
    vectors = VECTOR.findall(text)
    if len(vectors) != axes or VECTOR.sub("", text).strip() or sum(v != "none" for v in vectors) != 3:
        raise HeaderError("has a header whose space directions are not three vectors", code="affine")
    affine = np.eye(4)
    columns = [numbers(v[1:-1].replace(",", " "), 3, "space directions") for v in vectors if v != "none"]
    affine[:3, :3] = np.array(columns).T
    origin = fields.get("space origin", "(0,0,0)")
    affine[:3, 3] = numbers(origin.strip("()").replace(",", " "), 3, "space origin")
    return np.asarray(np.diag([*signs, 1.0]) @ affine), [v != "none" for v in vectors]


def _unit(fields: Mapping[str, str]) -> str:
    """Return the unit of length; `unknown` if the header has none or one that is not known."""
    units = {u.casefold() for u in re.findall(r'"([^"]*)"', fields.get("space units", ""))}
    if len(units) > 1:
        raise HeaderError("has several units of length", fix="export it again in millimetres", code="affine")
    return UNITS.get(next(iter(units), ""), "unknown")
