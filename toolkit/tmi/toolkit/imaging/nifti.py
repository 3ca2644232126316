"""Read one NIfTI file with bounded memory: the header first, then exactly the voxel bytes that it declares.

nibabel parses the header. The voxels are read here, because a damaged or hostile file must be rejected before memory is
allocated for it: a header that declares more than `MAX_VOXELS`, more than its compressed size can hold, or voxels that
start far behind the header. `tmi import` and every other command read NIfTI here, so that one set of rules applies.
Voxels are yielded in slabs while the file is decompressed; isal releases the GIL meanwhile, so other threads can
process the previous slabs. The stream is read to its end, so that gzip's checksum is verified.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
from isal.igzip import IGzipFile
from isal.isal_zlib import IsalError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from tmi.toolkit.cases.case import access_error
from tmi.toolkit.compute.buffer_pool import ArrayAllocator
from tmi.toolkit.compute.stage_timer import StageTimer
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.storage.bounded_files import (
    IMAGE_BYTES,
    FileTooLargeError,
    NotRegularFileError,
    is_access_error,
    open_regular,
    regular_file,
)
from tmi.toolkit.storage.file_kinds import file_kind, is_packed

MAX_VOXELS = 512 * 512 * 1536
"""A header that declares more voxels is rejected. A voxel takes up to four bytes in memory."""
GZIP_MAGIC = b"\x1f\x8b"
MAX_OFFSET = 16 * 2**20
"""Largest offset of the first voxel in bytes; the header and its extensions precede it."""
DEFLATE_RATIO = 1032
"""Largest compression ratio of a deflate stream."""
FORMS_TOLERANCE_VOXELS = 1.0
"""Largest distance between a corner under sform and under qform, relative to the volume's centre, in voxels."""
SHEAR_COSINE = 0.7
"""Smallest cosine between an axis of a sheared sform and of its qform, and ratio of their lengths: tilts below 45°."""
HEADERS = ((348, nib.Nifti1Header, b"n+1\0"), (540, nib.Nifti2Header, b"n+2\0"))
"""Header size in bytes, nibabel's class and magic of single-file NIfTI-1 and NIfTI-2."""
SLAB_BYTES = 2**21
"""Approximate size of a slab, so that it is still in the CPU cache when it is converted."""
INFLATE_ERROR = cast(type[Exception], IsalError)  # isal's stub declares it as an instance
NIFTI_READ_ERRORS = (OSError, EOFError, ValueError, KeyError, OverflowError, zlib.error, INFLATE_ERROR, HeaderDataError)
"""Exceptions raised while reading a damaged file."""


class OtherFormatError(ValueError):
    """A file that is no single NIfTI file, as opposed to a damaged one; its text is the fix."""


@dataclass(frozen=True, kw_only=True)
class NiftiFile:
    """A file whose header was read and validated; its voxels are still on disk."""

    path: Path
    """The file; compressed if its name ends in `.gz`."""
    name: str
    """Name of the file in messages."""
    case_id: str
    """Case that the file belongs to."""
    kind: str
    """`ct` or `mask`: prefix of the error codes."""
    shape_xyz: tuple[int, int, int]
    """Number of voxels along the stored axes."""
    dtype: np.dtype[Any]
    """Type of a stored voxel: integer or float."""
    offset: int
    """Offset of the first voxel in the decompressed stream, in bytes."""
    slope: float
    """Value = stored * slope + intercept."""
    intercept: float
    """See `slope`."""
    affine_xyz: NDArray[np.float64]
    """4x4, stored (x, y, z) index -> RAS+, in the header's unit."""
    unit: str
    """Unit of length declared by the header: `mm`, `meter`, `micron` or `unknown`."""

    def open_disk(self) -> TimedFile | TimedBytes:
        """Open the file, and ask the operating system to read it ahead."""
        disk = TimedFile(self.path, opener=regular_file)
        _advise_will_need(disk.fileno())
        return disk

    def slabs(
        self, timer: StageTimer | None = None, *, empty: ArrayAllocator = np.empty
    ) -> Iterator[tuple[int, int, NDArray[np.generic]]]:
        """Yield the stored, unscaled voxels in slabs along the file's last axis, which varies slowest.

        Args:
            timer: receives the seconds of disk reads under `read`.
            empty: allocates the array of each slab.

        Yields:
            Start and stop index along the last axis, and the read-only voxels `[x, y, start:stop]`.

        Raises:
            InputRejectedError: `KIND-unreadable`: the stream is damaged, too short, or longer than the voxels;
                `case-unreadable`: it cannot be read from the disk.
        """
        x, y, z = self.shape_xyz
        plane = x * y * self.dtype.itemsize
        step = max(1, SLAB_BYTES // plane)
        try:
            with self.open_disk() as disk, open_stream(disk, self.path) as stream:
                stream.seek(self.offset)
                for start in range(0, z, step):
                    stop = min(start + step, z)
                    data = empty(((stop - start) * plane,), np.uint8)
                    complete = _read_full(stream, data)
                    if timer is not None:
                        timer.record("read", disk.seconds)
                        disk.seconds = 0.0
                    if not complete:
                        raise EOFError
                    data.flags.writeable = False
                    # NIfTI stores x fastest, that is, Fortran order
                    yield start, stop, data.view(self.dtype).reshape((x, y, stop - start), order="F")
                    del data  # freed here so the buffer pool can reuse it for the next slab
                if stream.read(1):  # reading past the last voxel also verifies gzip's checksum
                    raise ValueError("the stream is longer than the header declares")
        except NIFTI_READ_ERRORS as error:
            raise unreadable_error(self.name, self.case_id, self.kind, cause=error) from error


def open_stream(disk: io.RawIOBase | BinaryIO, path: Path) -> io.RawIOBase | BinaryIO | IGzipFile:
    """Return the decompressed stream of an opened file; decompressed if the file's name ends in `.gz`."""
    return IGzipFile(fileobj=disk, mode="rb") if path.name.lower().endswith(".gz") else disk


def _read_full(stream: Any, data: NDArray[np.uint8]) -> bool:
    """Read until the array is full; return False if the stream ends before."""
    remaining = data.data
    while remaining:
        count = stream.readinto(remaining)
        if not count:
            return False
        remaining = remaining[count:]
    return True


class TimedFile(io.FileIO):
    """A file that accumulates the time of its reads."""

    seconds = 0.0

    def readinto(self, buffer: Any) -> int | None:
        """Read into a buffer and add the elapsed time to `seconds`."""
        start = perf_counter()
        count = super().readinto(buffer)
        self.seconds += perf_counter() - start
        return count


class TimedBytes(io.BytesIO):
    """Bytes that were read from a file."""

    seconds = 0.0


def read_ahead(path: Path) -> None:
    """Ask the operating system to load a file into its page cache; return at once.

    Raises:
        OSError: the file does not exist, cannot be opened, or is no regular file.
    """
    with open_regular(path) as disk:
        _advise_will_need(disk.fileno())


def _advise_will_need(descriptor: int) -> None:
    """Ask the operating system to load the whole file while its first bytes are decompressed."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)


def open_nifti(
    path: Path,
    *,
    case_id: str,
    kind: str,
    name: str | None = None,
    read: Callable[[], bytes] | None = None,
    present: bool | None = None,
) -> NiftiFile:
    """Read and validate a header.

    Args:
        path: a `.nii.gz` or `.nii` file.
        case_id: case that the file belongs to.
        kind: `ct` or `mask`; prefix of the error codes.
        name: name of the file in messages; None: its file name, which must not identify a patient.
        read: returns the bytes of the file, which is then not opened.
        present: whether there is such a file; None: as its path says.

    Raises:
        InputRejectedError: `KIND-missing`, `KIND-unreadable`, `KIND-not-3d`, `KIND-affine`, `KIND-forms`,
            `case-unreadable`.
    """
    if not (path.exists() if present is None else present):
        fix = "correct the path" if name else f"put {path.name} into the case folder"
        raise _input_error(f"{name or path.name} is missing", fix, f"{kind}-missing", case_id)
    name = name or path.name
    try:
        header, size = _header(path, None if read is None else read())
        dim = [int(n) for n in header["dim"]]
        dtype, offset = header.get_data_dtype(), float(header["vox_offset"])
        slope, intercept = header.get_slope_inter()
        stored_slope, stored_intercept = float(header["scl_slope"]), float(header["scl_inter"])
    except (NotRegularFileError, FileTooLargeError, IsADirectoryError) as error:
        raise _input_error(
            f"{name} cannot be read: {error.strerror}", "give a NIfTI file (.nii.gz)", f"{kind}-unreadable", case_id
        ) from error
    except OtherFormatError as error:
        what, fix = _other_format(path, None if read is None else read(), str(error))
        raise unreadable_error(name, case_id, kind, what=what, fix=fix) from error
    except NIFTI_READ_ERRORS as error:
        raise unreadable_error(name, case_id, kind, cause=error) from error
    # dim[0] is the number of axes, dim[1:] their sizes
    if not 1 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1:
        raise unreadable_error(name, case_id, kind)
    if dtype.kind not in "iuf":
        what, fix = "has voxels of a type that is not read (colours, complex numbers)", "save it as int16 or float32"
        raise unreadable_error(name, case_id, kind, what=what, fix=fix)
    if not np.isfinite(stored_slope) and np.isfinite(stored_intercept) and stored_intercept != 0:
        what = "has an intercept beside a slope that is not finite, which programs apply or ignore"
        raise unreadable_error(name, case_id, kind, what=what, fix="apply the scaling, and save without it")
    if dim[0] < 3 or any(n != 1 for n in dim[4 : dim[0] + 1]):
        raise _input_error(
            f"{name} has {dim[0]} axes", "give one 3D volume, not a series of them", f"{kind}-not-3d", case_id
        )
    shape = (dim[1], dim[2], dim[3])
    voxels = dim[1] * dim[2] * dim[3]
    start = header.sizeof_hdr + 4  # four bytes after the header flag its extensions
    if (
        voxels > MAX_VOXELS
        or not (offset == 0 or start <= offset <= MAX_OFFSET)
        or voxels * dtype.itemsize > size * (DEFLATE_RATIO if path.name.lower().endswith(".gz") else 1)
    ):
        what = "declares an impossible size: more voxels than a CT has, or than the file can hold"
        raise unreadable_error(name, case_id, kind, what=what)
    return NiftiFile(
        path=path,
        name=name,
        case_id=case_id,
        kind=kind,
        shape_xyz=shape,
        dtype=dtype,
        offset=int(offset) or start,  # some writers leave the offset 0
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        affine_xyz=_affine(header, shape, name, case_id, kind),
        unit=_unit(header),
    )


def _header(path: Path, content: bytes | None) -> tuple[Any, int]:
    """Return the header without its extensions, in the byte order of the file, and the size of the file in bytes.

    Args:
        path: the file.
        content: its bytes; None: they are read.

    Raises:
        OtherFormatError: the file has no single-file NIfTI header.
        EOFError: it ends within the header.
        OSError: the file cannot be read or decompressed, is no regular file, or is larger than `IMAGE_BYTES`.
    """
    source = open_regular(path, max_bytes=IMAGE_BYTES) if content is None else io.BufferedReader(io.BytesIO(content))
    with source as disk, open_stream(disk, path) as stream:
        file_bytes = os.fstat(disk.fileno()).st_size if content is None else len(content)
        if stream is not disk and file_bytes > 2 and disk.peek(2)[:2] != GZIP_MAGIC:
            raise OtherFormatError("its name ends in .gz, but it is not compressed: name it .nii, or compress it")
        data = stream.read(540) or b""
    for size, kind, magic in HEADERS:
        for order in "<>":
            if len(data) >= size and int(np.frombuffer(data[:4], f"{order}i4")[0]) == size:
                header = kind(io.BytesIO(data).read(size), endianness=order, check=False)
                if bytes(header["magic"]).ljust(4, b"\0")[:4] != magic:
                    raise OtherFormatError("save header and voxels as one NIfTI file (.nii.gz), not as .hdr and .img")
                return header, file_bytes
    if len(data) < HEADERS[0][0] and (not data or data[:4] in (b"\x5c\1\0\0", b"\0\0\1\x5c")):
        raise EOFError
    raise OtherFormatError("give a NIfTI file (.nii.gz); a name alone does not make one")


def _other_format(path: Path, content: bytes | None, fix: str) -> tuple[str, str]:
    """Return what a file is that is no NIfTI file, as the predicate of `it`, and its fix; `fix` if it is not known."""
    kind = file_kind(path, data=content)
    is_gzip = kind == "compressed with gzip"
    if kind in (None, "text", "a NIfTI file", "a NIfTI header") or (is_gzip and path.suffix.lower() == ".gz"):
        return "is no NIfTI file", fix
    if is_gzip:
        return "is no NIfTI file: it is compressed", "name it .nii.gz"
    return f"is no NIfTI file: it is {kind}", "unpack it" if is_packed(kind) else "give a NIfTI file (.nii.gz)"


def _unit(header: Any) -> str:
    try:
        return str(header.get_xyzt_units()[0])
    except KeyError:  # a code that the standard does not define
        return "unknown"


def _affine(header: Any, shape: tuple[int, ...], name: str, case_id: str, kind: str) -> NDArray[np.float64]:
    """Return the header's affine: sform if set, else qform, as other NIfTI readers do.

    Raises:
        InputRejectedError: `KIND-affine`: neither is set, or one is singular; `KIND-forms`: the two disagree.
    """
    try:
        with np.errstate(all="ignore"):
            sform, qform = header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]
    except NIFTI_READ_ERRORS as error:
        raise no_affine_error(name, case_id, kind) from error
    affines = [np.asarray(a, dtype=np.float64) for a in (sform, qform) if a is not None]
    if not affines or not all(is_usable_affine(a) for a in affines):
        raise no_affine_error(name, case_id, kind)
    sizes = np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))
    if not _forms_agree(affines, sizes, np.array(shape)):
        raise _input_error(
            f"{name} has two affines, sform and qform, that disagree in orientation or voxel size",
            "export it again, or set both to the correct one; programs differ in which of the two they use",
            f"{kind}-forms",
            case_id,
        )
    return affines[0]


def _forms_agree(affines: list[NDArray[np.float64]], pixdim: NDArray[np.float64], shape: NDArray[np.int_]) -> bool:
    """Return whether the second affine, or without one the voxel sizes `pixdim`, agree with the first affine.

    Programs differ in whether they take the voxel size from the sform or from `pixdim`. Origins may differ.

    Args:
        affines: 4x4, sform and qform, or one of them.
        pixdim: (3,) voxel sizes of the header; those that are not positive are undefined.
        shape: (3,) number of voxels.
    """
    if np.isinf(pixdim).any():
        return False
    first = affines[0][:3, :3]
    sizes = np.linalg.norm(first, axis=0)
    second = affines[-1][:3, :3] if len(affines) > 1 else first / sizes * np.where(pixdim > 0, pixdim, sizes)
    if is_sheared(affines[0]):
        # A qform is a rotation and a scaling, so it cannot equal a sheared sform (gantry tilt): its axes are compared.
        ratio = np.linalg.norm(second, axis=0) / sizes
        cosine = (first * second).sum(axis=0) / sizes**2 / ratio
        return bool(cosine.min() > SHEAR_COSINE and ratio.min() > SHEAR_COSINE and ratio.max() < 1 / SHEAR_COSINE)
    last = shape - 1
    # corners relative to the centre, linear part only
    corners = (np.array(np.meshgrid(*[(0, n) for n in last])).reshape(3, -1) - last[:, None] / 2).astype(np.float64)
    distance = np.linalg.norm((first - second) @ corners, axis=0).max()
    return bool(distance <= FORMS_TOLERANCE_VOXELS * sizes.min())


def is_usable_affine(affine_xyz: NDArray[np.float64]) -> bool:
    """Return whether an affine is finite, of plausible size and not close to singular."""
    linear = affine_xyz[:3, :3]
    if not np.isfinite(affine_xyz).all() or np.abs(affine_xyz).max() > 1e9:
        return False
    sizes = np.linalg.norm(linear, axis=0)
    # the determinant of the unit axis directions is 1 for orthogonal axes and 0 for coplanar ones
    return bool(sizes.min() > 1e-9 and abs(np.linalg.det(linear / sizes)) > 1e-3)


def is_sheared(affine_xyz: NDArray[np.float64], *, degrees: float = 0.5) -> bool:
    """Return whether two grid axes deviate from a right angle by more than `degrees`, as under a gantry tilt."""
    # entry (i, j) of direction.T @ direction is the cosine of the angle between axes i and j
    direction = affine_xyz[:3, :3] / np.linalg.norm(affine_xyz[:3, :3], axis=0)
    return bool(np.abs(direction.T @ direction - np.eye(3)).max() > np.sin(np.radians(degrees)))


def _input_error(what: str, fix: str, code: str, case_id: str) -> InputRejectedError:
    return InputRejectedError(what, fix=fix, code=code, case_id=case_id)


def no_affine_error(name: str, case_id: str, kind: str) -> InputRejectedError:
    """Return the error for a file without usable geometry (`KIND-affine`)."""
    what = f"{name} has no usable affine (sform or qform), so its orientation is not known"
    return _input_error(what, "export it again with its geometry", f"{kind}-affine", case_id)


def unreadable_error(
    name: str,
    case_id: str,
    kind: str,
    *,
    cause: BaseException | None = None,
    what: str = "is truncated or damaged, or longer than its header declares",
    fix: str = "copy the file again, or export it again",
) -> InputRejectedError:
    """Return the error for a file that cannot be opened (`case-unreadable`), or read (`KIND-unreadable`).

    Args:
        name: name of the file.
        case_id: case that the file belongs to.
        kind: `ct` or `mask`.
        cause: error of the operating system or the decoder.
        what: the problem, unless `cause` shows that the file cannot be opened.
        fix: its fix.
    """
    if cause is not None and is_access_error(cause):
        return access_error(name, cause, case_id)
    return _input_error(f"{name} cannot be read as NIfTI: it {what}", fix, f"{kind}-unreadable", case_id)
