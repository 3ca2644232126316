"""Reading one NIfTI file with bounded memory: the header first, then exactly the bytes that it may claim.

nibabel parses the header; the voxels are read here, because a damaged or hostile file must be refused before anything
is allocated for it: a header that claims more than `MAX_BYTES`, more than its compressed bytes could ever hold, or an
offset far behind the header. Header extensions are skipped, not read. The voxels come in slabs as they are inflated (by
isal, which lets go of Python's lock), so that whatever is made of them can be made while the rest still inflates. The
stream is read to its end, so that gzip's own checksum is compared.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import nibabel as nib
import numpy as np
from isal.igzip import IGzipFile
from isal.isal_zlib import IsalError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from tmi.toolkit.compute.buffer_pool import ArrayAllocator
from tmi.toolkit.compute.stage_timer import StageTimer
from tmi.toolkit.errors import InputRejectedError

MAX_BYTES = 512 * 512 * 1536 * 4
"""A header that claims more bytes of voxels is refused (1.5 GiB: 512 x 512 x 1536 voxels of float32)."""
MAX_VOXELS = MAX_BYTES // 4
"""The same in voxels, since each becomes up to four bytes here."""
MAX_OFFSET = 16 * 2**20
"""Where the voxels may begin at the latest; before them lie the header and its extensions."""
DEFLATE_RATIO = 1032
"""No deflate stream unpacks to more than so many times its size."""
FORMS_TOLERANCE_VOXELS = 1.0
"""How far apart the header's two affines may put a corner, seen from the volume's middle."""
HEADERS = ((348, nib.Nifti1Header, b"n+1\0"), (540, nib.Nifti2Header, b"n+2\0"))
SLAB_BYTES = 2**21
"""A slab holds about this much: it is still in the processor's cache when it is turned into what is wanted of it."""
INFLATE_ERROR = cast(type[Exception], IsalError)  # its stub takes it for an instance
NIFTI_READ_ERRORS = (OSError, EOFError, ValueError, KeyError, OverflowError, zlib.error, INFLATE_ERROR, HeaderDataError)
"""What reading a damaged file raises."""


@dataclass(frozen=True, kw_only=True)
class NiftiFile:
    """A file whose header was read and found sound; its voxels are still on disk."""

    path: Path
    """The file."""
    case_id: str
    """Case it belongs to."""
    kind: str
    """`ct` or `mask`: what the codes of refusals begin with."""
    shape_xyz: tuple[int, int, int]
    """Voxels."""
    dtype: np.dtype[Any]
    """Type of a stored voxel: integer or float."""
    offset: int
    """Where the voxels begin in the unpacked stream."""
    slope: float
    """Value = stored * slope + intercept."""
    intercept: float
    """See `slope`."""
    affine_xyz: NDArray[np.float64]
    """4x4, stored (x, y, z) index -> RAS+, in the header's unit."""
    unit: str
    """Unit of length that the header declares: `mm`, `meter`, `micron` or `unknown`."""

    def slabs(
        self, timer: StageTimer | None = None, *, empty: ArrayAllocator = np.empty
    ) -> Iterator[tuple[int, int, NDArray[np.generic]]]:
        """The voxels as they are stored, unscaled, in pieces along the file's last axis, which is its slowest.

        Args:
            timer: told under `read` how long the disk took.
            empty: makes the array of each piece.

        Yields:
            First and last-but-one index along the last axis, and the voxels `[x, y, first:last]` (read only).

        Raises:
            InputRejectedError: `KIND-unreadable`: the stream ends too soon, is damaged, or goes on behind the voxels.
        """
        x, y, z = self.shape_xyz
        plane = x * y * self.dtype.itemsize
        step = max(1, SLAB_BYTES // plane)
        try:
            with _TimedFile(self.path) as disk, IGzipFile(fileobj=disk, mode="rb") as stream:
                _advise(disk.fileno())
                stream.seek(self.offset)
                for first in range(0, z, step):
                    last = min(first + step, z)
                    data = empty(((last - first) * plane,), np.uint8)
                    whole = _fill(stream, data)
                    if timer is not None:
                        timer.record("read", disk.seconds)
                        disk.seconds = 0.0
                    if not whole:
                        raise EOFError
                    data.flags.writeable = False
                    yield first, last, data.view(self.dtype).reshape((x, y, last - first), order="F")
                    del data  # its memory is the next one's as soon as nobody looks at it
                if stream.read(1):
                    raise ValueError("more voxels than the header names")
        except NIFTI_READ_ERRORS as error:
            raise unreadable(self.path, self.case_id, self.kind) from error


def _fill(stream: IGzipFile, data: NDArray[np.uint8]) -> bool:
    """Read until the array is full; False where the stream ends before."""
    rest = data.data
    while rest:
        count = stream.readinto(rest)
        if not count:
            return False
        rest = rest[count:]
    return True


class _TimedFile(io.FileIO):
    """A file that adds up how long reading from it took."""

    seconds = 0.0

    def readinto(self, buffer: Any) -> int | None:
        """As of any file."""
        start = perf_counter()
        count = super().readinto(buffer)
        self.seconds += perf_counter() - start
        return count


def read_ahead(path: Path) -> None:
    """Have the system fetch a file from the disk; returns before it is there.

    Raises:
        OSError: there is no such file, or it may not be read.
    """
    with path.open("rb") as disk:
        _advise(disk.fileno())


def _advise(descriptor: int) -> None:
    """Have the system fetch the whole file from the disk while its beginning is inflated."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)


def open_nifti(path: Path, *, case_id: str, kind: str) -> NiftiFile:
    """Read and judge a header.

    Args:
        path: a `.nii.gz` file.
        case_id: for the error.
        kind: `ct` or `mask`.

    Raises:
        InputRejectedError: `KIND-missing`, `KIND-unreadable`, `KIND-not-3d`, `KIND-affine`, `KIND-forms`.
    """
    if not path.is_file():
        raise _input_error(
            f"{path.name} is missing", f"put {path.name} into the case folder", f"{kind}-missing", case_id
        )
    try:
        header = _header(path)
        dim = [int(n) for n in header["dim"]]
        dtype, offset = header.get_data_dtype(), float(header["vox_offset"])
        slope, intercept = header.get_slope_inter()
    except NIFTI_READ_ERRORS as error:
        raise unreadable(path, case_id, kind) from error
    if not 1 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1 or dtype.kind not in "iuf":
        raise unreadable(path, case_id, kind)
    if dim[0] < 3 or any(n != 1 for n in dim[4 : dim[0] + 1]):
        raise _input_error(
            f"{path.name} has {dim[0]} axes", "give one 3D volume, not a series of them", f"{kind}-not-3d", case_id
        )
    shape = (dim[1], dim[2], dim[3])
    voxels = dim[1] * dim[2] * dim[3]
    start = header.sizeof_hdr + 4
    if (
        voxels > MAX_VOXELS
        or voxels * dtype.itemsize > MAX_BYTES
        or not (offset == 0 or start <= offset <= MAX_OFFSET)
        or voxels * dtype.itemsize > path.stat().st_size * DEFLATE_RATIO
    ):
        raise unreadable(path, case_id, kind)
    return NiftiFile(
        path=path,
        case_id=case_id,
        kind=kind,
        shape_xyz=shape,
        dtype=dtype,
        offset=int(offset) or start,
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        affine_xyz=_affine(header, shape, path, case_id, kind),
        unit=_unit(header),
    )


def _header(path: Path) -> Any:
    """The header without its extensions, in the byte order it was written in.

    Raises:
        ValueError, OSError and the like: it is none.
    """
    with IGzipFile(path, "rb") as stream:
        data = stream.read(540)
    for size, kind, magic in HEADERS:
        for order in "<>":
            if len(data) >= size and int(np.frombuffer(data[:4], f"{order}i4")[0]) == size:
                header = kind(io.BytesIO(data).read(size), endianness=order, check=False)
                if bytes(header["magic"]).ljust(4, b"\0")[:4] != magic:
                    raise ValueError("the magic of a single NIfTI file is missing")
                return header
    raise ValueError("no NIfTI header")


def _unit(header: Any) -> str:
    try:
        return str(header.get_xyzt_units()[0])
    except KeyError:  # a code that the standard lacks
        return "unknown"


def _affine(header: Any, shape: tuple[int, ...], path: Path, case_id: str, kind: str) -> NDArray[np.float64]:
    """The header's affine: sform before qform, as the standard's readers do. One of the two must be set."""
    try:
        with np.errstate(all="ignore"):
            sform, qform = header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]
    except NIFTI_READ_ERRORS as error:
        raise no_affine(path, case_id, kind) from error
    given = [np.asarray(a, dtype=np.float64) for a in (sform, qform) if a is not None]
    if not given or not all(usable(a) for a in given):
        raise no_affine(path, case_id, kind)
    if len(given) == 2 and not is_sheared(given[0]):
        last = np.array(shape) - 1
        corners = (np.array(np.meshgrid(*[(0, n) for n in last])).reshape(3, -1) - last[:, None] / 2).astype(np.float64)
        apart = np.linalg.norm((given[0] - given[1])[:3, :3] @ corners, axis=0).max()
        if apart > FORMS_TOLERANCE_VOXELS * np.linalg.norm(given[0][:3, :3], axis=0).min():
            raise _input_error(
                f"{path.name} has two affines, sform and qform, that disagree in orientation or voxel size",
                "export it again, or set both to the right one; programs differ in which of them they believe",
                f"{kind}-forms",
                case_id,
            )
    return given[0]


def usable(affine_xyz: NDArray[np.float64]) -> bool:
    """Whether an affine is finite, of sane size, and maps no axis to nothing or onto another."""
    linear = affine_xyz[:3, :3]
    if not np.isfinite(affine_xyz).all() or np.abs(affine_xyz).max() > 1e9:
        return False
    sizes = np.linalg.norm(linear, axis=0)
    return bool(sizes.min() > 1e-9 and abs(np.linalg.det(linear / sizes)) > 1e-3)


def is_sheared(affine_xyz: NDArray[np.float64], *, degrees: float = 0.5) -> bool:
    """Whether two axes of the grid are off the right angle by more than `degrees`: a gantry tilt left in the data."""
    direction = affine_xyz[:3, :3] / np.linalg.norm(affine_xyz[:3, :3], axis=0)
    return bool(np.abs(direction.T @ direction - np.eye(3)).max() > np.sin(np.radians(degrees)))


def _input_error(what: str, fix: str, code: str, case_id: str) -> InputRejectedError:
    return InputRejectedError(what, fix=fix, code=code, case_id=case_id)


def no_affine(path: Path, case_id: str, kind: str) -> InputRejectedError:
    """The refusal of a file without usable geometry."""
    return _input_error(
        f"{path.name} has no usable affine", "export it again with its geometry", f"{kind}-affine", case_id
    )


def unreadable(path: Path, case_id: str, kind: str) -> InputRejectedError:
    """The refusal of a damaged file."""
    return _input_error(
        f"{path.name} cannot be read as NIfTI",
        "copy the file again, or export it again: it is truncated, damaged, absurdly large or no NIfTI (.nii.gz)",
        f"{kind}-unreadable",
        case_id,
    )
