"""Reader of single-file images: NIfTI with nibabel, NRRD and MetaImage with SimpleITK.

Every format is returned as a `Volume` in canonical voxel order with an index -> RAS+ mm affine.
"""

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
"""Finding of a reader: code of the check, message, fix."""
MAX_VOXELS = 512 * 512 * 1536
"""Limit on the header's voxel count; a file that exceeds it is rejected before anything is allocated."""
NIFTI_ERRORS = (OSError, EOFError, ValueError, OverflowError, zlib.error, ImageFileError, HeaderDataError)
"""Exceptions that nibabel raises on damaged files."""


@dataclass(frozen=True, kw_only=True)
class LoadedCt:
    """A CT volume and the header values that the import needs, from any file format."""

    volume: Volume
    """int16 or float32 voxels in HU."""
    source: Mapping[str, Any]
    """Description of the source for `case.json`, without identifying values."""
    findings: tuple[RawFinding, ...] = ()
    """Warnings of the reader."""
    repairs: tuple[Repair, ...] = ()
    """Requested repairs that were applied."""
    patient_id: str | None = None
    """DICOM PatientID; used for comparison only, never written."""
    frame_of_reference: str | None = None
    """DICOM FrameOfReferenceUID; used for comparison only, never written."""
    date: str | None = None
    """DICOM acquisition date (YYYYMMDD); only its distance in days to the blood sample is written."""


@dataclass(frozen=True, kw_only=True)
class LoadedImage:
    """An image with its rescaled voxel values and header metadata."""

    volume: Volume
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Key-value pairs of an NRRD header."""


def is_image_file(path: Path) -> bool:
    """Return whether the file name has a suffix of a supported image format."""
    return path.name.lower().endswith(IMAGE_ENDINGS)


def read_image_ct(path: Path, *, case_id: str) -> LoadedCt:
    """Read a CT from NIfTI, NRRD or MetaImage.

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
    source = {"kind": _format_name(path), "sha256": sha256_file(path)}
    return LoadedCt(volume=Volume(array_DHW=narrow_hu(array), affine_xyz=volume.affine_xyz), source=source)


def _format_name(path: Path) -> str:
    name = path.name.lower()
    return "nifti" if name.endswith(NIFTI_ENDINGS) else "nrrd" if name.endswith((".nrrd", ".nhdr")) else "metaimage"


def read_image(path: Path, *, kind: str, case_id: str) -> LoadedImage:
    """Read the voxels and the metadata of one file.

    Args:
        path: file with a suffix of `IMAGE_ENDINGS`.
        kind: `ct` or `mask`; prefix of the error codes.
        case_id: case id for error messages.

    Raises:
        InputRejectedError: KIND-missing, KIND-unreadable, KIND-not-3d, KIND-affine.
    """
    name = f"the {'CT' if kind == 'ct' else 'mask'} file"
    if not path.is_file():
        raise _input_error(kind, "missing", f"{name} does not exist", "correct the path", case_id)
    if path.name.lower().endswith(NIFTI_ENDINGS):
        return LoadedImage(volume=_read_nifti(path, name, kind, case_id))
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    fix = "copy or export the file again: it is truncated or damaged"
    try:
        reader.ReadImageInformation()
        size, dimension = reader.GetSize(), reader.GetDimension()
        components = reader.GetNumberOfComponents()
        if dimension > 3 and set(size[3:]) != {1}:
            raise _input_error(kind, "not-3d", f"{name} has {dimension} axes", "give one 3D volume", case_id)
        if dimension < 3 or components != 1:
            message = f"{name} has {dimension} axes and {components} values per voxel"
            raise _input_error(kind, "not-3d", message, "give one 3D volume with one value per voxel", case_id)
        if min(size) < 1 or math.prod(size) > MAX_VOXELS:
            raise _input_error(kind, "unreadable", f"{name} declares an implausible size", fix, case_id)
        image = reader.Execute()
        metadata = {k: reader.GetMetaData(k) for k in reader.GetMetaDataKeys()}
    except (RuntimeError, UnicodeError, TypeError, MemoryError) as error:
        raise _input_error(kind, "unreadable", f"{name} cannot be read", fix, case_id) from error
    array = SimpleITK.GetArrayFromImage(image).reshape(size[2::-1])
    if array.dtype.kind not in "iuf":
        raise _input_error(kind, "unreadable", f"{name} holds no numeric voxels", fix, case_id)
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(dimension, dimension)[:3, :3] * image.GetSpacing()[:3]
    affine[:3, 3] = image.GetOrigin()[:3]
    if not is_valid_affine(affine):
        raise _input_error(kind, "affine", f"{name} has no usable geometry", "export it again", case_id)
    # ITK geometry is LPS; negating x and y gives RAS.
    volume = canonical_volume(array.transpose(2, 1, 0), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)
    return LoadedImage(volume=volume, metadata=metadata)


def _read_nifti(path: Path, name: str, kind: str, case_id: str) -> Volume:
    fix = "copy or export the file again: it is truncated, damaged or not NIfTI"
    try:
        image = nib.load(path)
        shape, affine = image.shape, np.asarray(image.affine, dtype=np.float64)
        if not isinstance(image, nib.Nifti1Pair) or not shape or min(shape) < 1:
            raise ValueError("not a NIfTI volume")
        if len(shape) < 3 or set(shape[3:]) - {1}:
            raise _input_error(kind, "not-3d", f"{name} has {len(shape)} axes", "give one 3D volume", case_id)
        if math.prod(shape) > MAX_VOXELS or not _is_long_enough(path, image):
            raise _input_error(kind, "unreadable", f"{name} declares an implausible size", fix, case_id)
        if not is_valid_affine(affine):
            raise _input_error(kind, "affine", f"{name} has no usable geometry", "export it again", case_id)
        slope, intercept = image.header.get_slope_inter()
        stored = np.asanyarray(image.dataobj.get_unscaled()).reshape(shape[:3])
        if stored.dtype.kind not in "iuf":
            raise ValueError("voxels are not numeric")
    except NIFTI_ERRORS as error:
        raise _input_error(kind, "unreadable", f"{name} cannot be read as NIfTI", fix, case_id) from error
    return canonical_volume(_scaled(stored, slope, intercept), affine)


def _is_long_enough(path: Path, image: Any) -> bool:
    """Return whether the file can hold the voxels that its header declares; deflate compresses at most 1032:1."""
    declared = math.prod(image.shape) * image.get_data_dtype().itemsize
    return bool(declared <= path.stat().st_size * (1032 if path.name.lower().endswith(".gz") else 1))


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
        # Integer arithmetic keeps whole HU exact; float32 would round large stored values.
        return stored.astype(np.int64) * int(slope) + int(intercept)
    return stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def narrow_hu(array: NDArray[Any]) -> NDArray[Any]:
    """Cast HU to int16 if every value is a whole number in range, else to float32 (many tools write float64)."""
    bounds = np.iinfo(np.int16)
    if array.dtype == np.int16 or array.size == 0:
        return array.astype(np.int16, copy=False)
    if bounds.min <= array.min() and array.max() <= bounds.max:
        whole = array.astype(np.int16)
        if array.dtype.kind != "f" or np.array_equal(whole, array):
            return whole
    return array.astype(np.float32)


def is_valid_affine(affine: NDArray[np.float64]) -> bool:
    """Return whether an affine is finite and its three axes are non-zero and linearly independent."""
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or np.abs(affine).max() > 1e9 or sizes.min() < 1e-9:
        return False
    # The determinant of the unit axes is the volume they span: 1 if orthogonal, 0 if coplanar.
    return bool(abs(np.linalg.det(affine[:3, :3] / sizes)) > 1e-3)


def canonical_volume(array_XYZ: NDArray[np.generic], affine_xyz: NDArray[np.float64]) -> Volume:
    """Reorder an array to a canonical `Volume` by axis permutations and flips; no voxel value is interpolated.

    Args:
        array_XYZ: voxels in any order of axes.
        affine_xyz: (4, 4) affine from voxel indices of `array_XYZ` to RAS+ mm.
    """
    orientation = nib.orientations.io_orientation(affine_xyz)
    affine = affine_xyz @ nib.orientations.inv_ornt_aff(orientation, array_XYZ.shape)
    array_DHW = nib.orientations.apply_orientation(array_XYZ, orientation).transpose(2, 1, 0)
    return Volume(array_DHW=np.ascontiguousarray(array_DHW), affine_xyz=np.asarray(affine, dtype=np.float64))


def _input_error(kind: str, code: str, what: str, fix: str, case_id: str) -> InputRejectedError:
    return InputRejectedError(what, fix=fix, code=f"{kind}-{code}", case_id=case_id)
