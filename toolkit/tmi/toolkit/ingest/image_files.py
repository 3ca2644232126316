"""Reader of single-file images: NIfTI as in a case folder, NRRD and MetaImage with validated headers.

Every format is returned as a `Volume` in canonical voxel order with an index -> RAS+ mm affine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.cases.case import access_error
from tmi.toolkit.cases.provenance import Repair
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.imaging.label_names import read_label_names
from tmi.toolkit.imaging.nifti import MAX_VOXELS as MAX_VOXELS
from tmi.toolkit.imaging.nifti import open_nifti
from tmi.toolkit.imaging.volume import Volume, read_ct_file, read_label_file
from tmi.toolkit.ingest.metaimage import read_metaimage_header
from tmi.toolkit.ingest.nrrd import read_nrrd_header
from tmi.toolkit.ingest.voxel_data import HeaderError, read_voxels
from tmi.toolkit.issues.issue import Issue
from tmi.toolkit.storage.bounded_files import is_access_error
from tmi.toolkit.storage.file_kinds import file_kind
from tmi.toolkit.storage.hashing import sha256_file

NIFTI_ENDINGS = (".nii", ".nii.gz")
ITK_ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")
IMAGE_ENDINGS = NIFTI_ENDINGS + ITK_ENDINGS
OTHER_FORMATS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(
            (".img", ".hdr", ".img.gz", ".hdr.gz"), "convert the pair of .hdr and .img to one .nii.gz file"
        ),
        **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar", ".nii.bz2", ".nii.xz", ".nii.zst"), "unpack it"),
        **dict.fromkeys(
            (".mgz", ".mgh", ".mnc", ".par", ".rec", ".gipl", ".vtk", ".tif", ".tiff"), "convert it to .nii.gz"
        ),
        **dict.fromkeys(
            (".png", ".jpg", ".jpeg", ".bmp", ".stl", ".obj", ".pdf"), "give the volume, not a picture of it"
        ),
        **dict.fromkeys((".npy", ".npz", ".mat", ".raw"), "save it with its geometry, as .nii.gz"),
    }
)
"""Suffix of a file that is not read -> fix."""
FORMATS = "NIfTI (.nii, .nii.gz), NRRD, MetaImage"
SEGMENT = re.compile(r"Segment\d+")
"""Prefix of the keys of a segment in an NRRD header of 3D Slicer."""


@dataclass(frozen=True, kw_only=True)
class LoadedCt:
    """A CT volume and the header values that the import needs, from any file format."""

    volume: Volume
    """int16 or float32 voxels in HU."""
    source: Mapping[str, Any]
    """Description of the source for `case.json`, without identifying values."""
    findings: tuple[Issue, ...] = ()
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
    """An image and the label names of its header."""

    volume: Volume
    """Voxels in the file's type, or HU of a NIfTI CT, or int32 labels of a NIfTI mask."""
    label_names: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """Label value -> its names in the header; empty if the header has none."""
    is_segmentation: bool = False
    """Whether the file is a segmentation of 3D Slicer, which may store a cut-out of the CT's grid."""


def is_image_file(path: Path) -> bool:
    """Return whether the file name has a suffix of a supported image format; a folder is none."""
    return path.name.lower().endswith(IMAGE_ENDINGS) and not path.is_dir()


def unknown_format_error(path: Path, *, kind: str, case_id: str) -> InputRejectedError:
    """Return the error for a file that is neither DICOM nor an image that is read (dicom-not-ct, mask-unreadable).

    Only a known suffix is repeated in the message, since a file name may identify the patient.
    """
    suffix = next((s for s in OTHER_FORMATS if path.name.lower().endswith(s)), "")
    name = f"the {'CT' if kind == 'ct' else 'mask'} file" + (f" ({suffix})" if suffix else "")
    try:
        content = file_kind(path)
    except OSError as error:
        return access_error(name, error, case_id)
    return InputRejectedError(
        f"{name} is {content}"
        if content == "empty"
        else f"{name} is of a format that is not read" + (f": it is {content}" if content else ""),
        code="dicom-not-ct" if kind == "ct" else "mask-unreadable",
        case_id=case_id,
        fix=f"{OTHER_FORMATS[suffix]}; formats that are read: " + FORMATS + " and DICOM"
        if suffix
        else f"give {FORMATS} or DICOM" + (" (a series)" if kind == "ct" else " (SEG, RTSTRUCT)"),
    )


def read_image_ct(path: Path, *, case_id: str) -> LoadedCt:
    """Read a CT from NIfTI, NRRD or MetaImage.

    Raises:
        InputRejectedError: ct-missing, ct-unreadable, ct-not-3d, ct-affine, ct-forms, ct-nan.
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
    return LoadedCt(volume=replace(volume, array_DHW=narrow_hu(array)), source=source)


def _format_name(path: Path) -> str:
    name = path.name.lower()
    return "nifti" if name.endswith(NIFTI_ENDINGS) else "nrrd" if name.endswith((".nrrd", ".nhdr")) else "metaimage"


def read_image(path: Path, *, kind: str, case_id: str) -> LoadedImage:
    """Read the voxels and the metadata of one file.

    Args:
        path: file with a suffix of `IMAGE_ENDINGS`.
        kind: `ct` or `mask`; prefix of the error codes. Voxels of a NIfTI mask are returned as int32 labels.
        case_id: case id for error messages.

    Raises:
        InputRejectedError: KIND-missing, KIND-unreadable, KIND-not-3d, KIND-affine, KIND-forms, KIND-nan, mask-values,
            mask-label, case-unreadable.
    """
    name = f"the {'CT' if kind == 'ct' else 'mask'} file"
    if not path.is_file():
        raise _kind_error(kind, "missing", f"{name} does not exist", "correct the path", case_id)
    if path.name.lower().endswith(NIFTI_ENDINGS):
        file = open_nifti(path, case_id=case_id, kind=kind, name=name)
        if kind == "ct":
            return LoadedImage(volume=read_ct_file(file))
        return LoadedImage(volume=read_label_file(file), label_names=read_label_names(file))
    try:
        header = (read_nrrd_header if _format_name(path) == "nrrd" else read_metaimage_header)(path)
        if not is_valid_affine(header.affine_xyz):
            raise HeaderError("has no usable geometry", code="affine")
        array = read_voxels(header)
    except HeaderError as error:
        raise _kind_error(kind, error.code, f"{name} {error.what}", error.fix, case_id) from error
    except (OSError, MemoryError) as error:
        if is_access_error(error):
            raise access_error(name, error, case_id) from error
        fix = "copy or export the file again: it is truncated or damaged"
        raise _kind_error(kind, "unreadable", f"{name} cannot be read", fix, case_id) from error
    volume = canonical_volume(array, header.affine_xyz)
    names = segment_names(header.metadata, name, case_id)
    return LoadedImage(volume=replace(volume, unit=header.unit), label_names=names, is_segmentation=bool(names))


def segment_names(metadata: Mapping[str, str], name: str, case_id: str) -> dict[int, tuple[str, ...]]:
    """Return label value -> names, from the segment entries that 3D Slicer writes into an NRRD header.

    Raises:
        InputRejectedError: mask-label: two segments of different names have one label.
    """
    names: dict[int, tuple[str, ...]] = {}
    for key in metadata:
        prefix, _, entry = key.partition("_")
        if entry not in ("Name", "LabelValue") or not SEGMENT.fullmatch(prefix):
            continue
        value, segment = metadata.get(f"{prefix}_LabelValue", "").strip(), metadata.get(f"{prefix}_Name", "").strip()
        error = partial(InputRejectedError, code="mask-label", case_id=case_id)
        if not (value.isdecimal() and len(value) < 11):
            raise error(f"{name} has a segment without a label value in its header", fix="save it again in 3D Slicer")
        # a segment has one name, and a type in a terminology, whose default is "Tissue"
        labels = (segment, *_terminology_type(metadata.get(f"{prefix}_Tags", "")))
        found = tuple(dict.fromkeys(n for n in labels if n))
        if names.setdefault(int(value), found) != found:
            fix = "export each segment with its own label"
            raise error(f"{name} gives label {int(value)} two names in its header", fix=fix)
    return names


def _terminology_type(tags: str) -> tuple[str, ...]:
    """Return code value and meaning of a segment's type, `TerminologyEntry:CONTEXT~CATEGORY~SCHEME^VALUE^MEANING~`."""
    entry = next((t for t in tags.split("|") if t.startswith("TerminologyEntry:")), "")
    parts = entry.split("~")
    return tuple(p.strip() for p in parts[2].split("^")[1:3]) if len(parts) > 2 else ()


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


def _kind_error(kind: str, part: str, what: str, fix: str, case_id: str) -> InputRejectedError:
    return InputRejectedError(what, fix=fix, code=f"{kind}-{part}", case_id=case_id)
