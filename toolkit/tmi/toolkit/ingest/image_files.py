"""Images of one file: NIfTI through nibabel, NRRD and MetaImage through SimpleITK, each as a canonical `Volume`."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from tmi.toolkit.cases.provenance import Repair
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.imaging.volume import Volume
from tmi.toolkit.storage.hashing import sha256_file

NIFTI_ENDINGS = (".nii", ".nii.gz")
ITK_ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")
IMAGE_ENDINGS = NIFTI_ENDINGS + ITK_ENDINGS
RawFinding = tuple[str, str, str]
"""What a reader found: code, what is wrong, how to mend it."""
MAX_VOXELS = 512 * 512 * 1536
"""A header that claims more is refused before anything is allocated."""
NIFTI_ERRORS = (OSError, EOFError, ValueError, OverflowError, zlib.error, ImageFileError, HeaderDataError)
"""What nibabel raises on damaged files."""


@dataclass(frozen=True, kw_only=True)
class ReadCt:
    """A CT as it was read, whatever from."""

    volume: Volume
    """int16 or float32, in HU."""
    source: Mapping[str, Any]
    """What the case's record says of it; nothing that identifies."""
    findings: tuple[RawFinding, ...] = ()
    """Warnings of the reader."""
    repairs: tuple[Repair, ...] = ()
    """What was repaired on request."""
    patient_id: str | None = None
    """PatientID of DICOM, to be compared and forgotten."""
    frame_of_reference: str | None = None
    """FrameOfReferenceUID of DICOM, to be compared and forgotten."""
    date: str | None = None
    """Date of acquisition as DICOM writes it (YYYYMMDD), to be reduced to a distance in days and forgotten."""


@dataclass(frozen=True, kw_only=True)
class ReadImage:
    """An image of one file, values as stored."""

    volume: Volume
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Key-value pairs of an NRRD header."""


def is_image_file(path: Path) -> bool:
    """Whether the name ends as that of a format read here."""
    return path.name.lower().endswith(IMAGE_ENDINGS)


def read_image_ct(path: Path, *, case_id: str) -> ReadCt:
    """A CT from NIfTI, NRRD or MetaImage.

    Raises:
        InputRejectedError: ct-missing, ct-unreadable, ct-not-3d, ct-affine, ct-nan.
    """
    volume = read_image(path, kind="ct", case_id=case_id).volume
    array = volume.array_DHW
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputRejectedError(
            "the CT file holds voxels that are not finite",
            code="ct-nan",
            case_id=case_id,
            fix="export the CT again from its series; NaN voxels have no Hounsfield value",
        )
    source = {"kind": _kind(path), "sha256": sha256_file(path)}
    return ReadCt(volume=Volume(array_DHW=hounsfield(array), affine_xyz=volume.affine_xyz), source=source)


def _kind(path: Path) -> str:
    name = path.name.lower()
    return "nifti" if name.endswith(NIFTI_ENDINGS) else "nrrd" if name.endswith((".nrrd", ".nhdr")) else "metaimage"


def read_image(path: Path, *, kind: str, case_id: str) -> ReadImage:
    """Voxels and header of one file.

    Args:
        path: a file whose name ends in one of `IMAGE_ENDINGS`.
        kind: `ct` or `mask`, the first part of the codes.
        case_id: for the error texts.

    Raises:
        InputRejectedError: KIND-missing, KIND-unreadable, KIND-not-3d, KIND-affine.
    """
    name = f"the {'CT' if kind == 'ct' else 'mask'} file"
    if not path.is_file():
        raise _input_error(kind, "missing", f"{name} is not there", "correct the path", case_id)
    if path.name.lower().endswith(NIFTI_ENDINGS):
        return ReadImage(volume=_read_nifti(path, name, kind, case_id))
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    again = "copy the file again, or export it again: it is truncated or damaged"
    try:
        reader.ReadImageInformation()
        size, dimension = reader.GetSize(), reader.GetDimension()
        components = reader.GetNumberOfComponents()
        if dimension > 3 and set(size[3:]) != {1}:
            raise _input_error(kind, "not-3d", f"{name} has {dimension} axes", "give one 3D volume", case_id)
        if dimension < 3 or components != 1:
            what = f"{name} has {dimension} axes and {components} values a voxel"
            raise _input_error(kind, "not-3d", what, "give one 3D volume with one value a voxel", case_id)
        if min(size) < 1 or math.prod(size) > MAX_VOXELS:
            raise _input_error(kind, "unreadable", f"{name} claims an absurd size", again, case_id)
        image = reader.Execute()
        metadata = {k: reader.GetMetaData(k) for k in reader.GetMetaDataKeys()}
    except (RuntimeError, UnicodeError, TypeError, MemoryError) as error:
        raise _input_error(kind, "unreadable", f"{name} cannot be read", again, case_id) from error
    array = SimpleITK.GetArrayFromImage(image).reshape(size[2::-1])
    if array.dtype.kind not in "iuf":
        raise _input_error(kind, "unreadable", f"{name} holds no numbers", again, case_id)
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(dimension, dimension)[:3, :3] * image.GetSpacing()[:3]
    affine[:3, 3] = image.GetOrigin()[:3]
    if not usable(affine):
        raise _input_error(kind, "affine", f"{name} has no usable geometry", "export it again", case_id)
    volume = canonical_volume(array.transpose(2, 1, 0), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)
    return ReadImage(volume=volume, metadata=metadata)


def _read_nifti(path: Path, name: str, kind: str, case_id: str) -> Volume:
    again = "copy the file again, or export it again: it is truncated, damaged or no NIfTI"
    try:
        image = nib.load(path)
        shape, affine = image.shape, np.asarray(image.affine, dtype=np.float64)
        if not isinstance(image, nib.Nifti1Pair) or not shape or min(shape) < 1:
            raise ValueError("no NIfTI volume")
        if len(shape) < 3 or set(shape[3:]) - {1}:
            raise _input_error(kind, "not-3d", f"{name} has {len(shape)} axes", "give one 3D volume", case_id)
        if math.prod(shape) > MAX_VOXELS or not _could_hold(path, image):
            raise _input_error(kind, "unreadable", f"{name} claims an absurd size", again, case_id)
        if not usable(affine):
            raise _input_error(kind, "affine", f"{name} has no usable geometry", "export it again", case_id)
        slope, intercept = image.header.get_slope_inter()
        stored = np.asanyarray(image.dataobj.get_unscaled()).reshape(shape[:3])
        if stored.dtype.kind not in "iuf":
            raise ValueError("no numbers")
    except NIFTI_ERRORS as error:
        raise _input_error(kind, "unreadable", f"{name} cannot be read as NIfTI", again, case_id) from error
    return canonical_volume(_scaled(stored, slope, intercept), affine)


def _could_hold(path: Path, image: Any) -> bool:
    """Whether the file is long enough for what its header claims: deflate never packs more than 1032 to 1."""
    claimed = math.prod(image.shape) * image.get_data_dtype().itemsize
    return bool(claimed <= path.stat().st_size * (1032 if path.name.lower().endswith(".gz") else 1))


def _scaled(stored: NDArray[Any], slope: float | None, intercept: float | None) -> NDArray[Any]:
    slope, intercept = (1.0 if slope is None else float(slope)), (0.0 if intercept is None else float(intercept))
    if (slope, intercept) == (1.0, 0.0):
        return stored
    if (
        stored.dtype.kind in "iu"
        and slope.is_integer()
        and intercept.is_integer()
        and max(abs(slope), abs(intercept)) < 2**20
    ):
        return stored.astype(np.int64) * int(slope) + int(intercept)
    return stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def hounsfield(array: NDArray[Any]) -> NDArray[Any]:
    """HU as int16 where all are whole numbers that fit, else as float32; many tools write whole HU as float64."""
    bounds = np.iinfo(np.int16)
    if array.dtype == np.int16 or array.size == 0:
        return array.astype(np.int16, copy=False)
    if bounds.min <= array.min() and array.max() <= bounds.max:
        whole = array.astype(np.int16)
        if array.dtype.kind != "f" or np.array_equal(whole, array):
            return whole
    return array.astype(np.float32)


def usable(affine: NDArray[np.float64]) -> bool:
    """Whether an affine is finite and no axis vanishes or runs along another."""
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or np.abs(affine).max() > 1e9 or sizes.min() < 1e-9:
        return False
    return bool(abs(np.linalg.det(affine[:3, :3] / sizes)) > 1e-3)


def canonical_volume(array_XYZ: NDArray[np.generic], affine_xyz: NDArray[np.float64]) -> Volume:
    """An array in any voxel order, with its index -> RAS+ mm affine, as a canonical `Volume`; voxels are only moved."""
    orientation = nib.orientations.io_orientation(affine_xyz)
    affine = affine_xyz @ nib.orientations.inv_ornt_aff(orientation, array_XYZ.shape)
    array_DHW = nib.orientations.apply_orientation(array_XYZ, orientation).transpose(2, 1, 0)
    return Volume(array_DHW=np.ascontiguousarray(array_DHW), affine_xyz=np.asarray(affine, dtype=np.float64))


def _input_error(kind: str, code: str, what: str, fix: str, case_id: str) -> InputRejectedError:
    return InputRejectedError(what, fix=fix, code=f"{kind}-{code}", case_id=case_id)
