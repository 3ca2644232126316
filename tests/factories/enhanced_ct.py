"""Enhanced multi-frame CT objects, made from the slices of a single-frame series."""

from __future__ import annotations

from collections.abc import Sequence

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

ENHANCED, LEGACY = "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"
MACROS = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept", "RescaleType"),
}
"""Sequence of a functional group -> its elements; kernel and frame type are placed by class."""
TOP = (
    "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality", "ImageType", "PatientID", "PatientName",
    "PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber", "StudyDate", "SeriesDate", "StudyTime",
    "SeriesTime", "SeriesNumber", "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue",
)  # fmt: skip


def item(source: Dataset, names: Sequence[str]) -> Dataset:
    """Copy elements that exist."""
    data = Dataset()
    for name in names:
        if name in source:
            data[name] = source[name]
    return data


def to_enhanced(slices: Sequence[Dataset], *, sop_class: str = ENHANCED, shared: Sequence[str] = ()) -> Dataset:
    """Return one object with a frame for each uncompressed slice, in order; macros in `shared` lie there.

    The kernel lies in CTReconstructionSequence, or for a legacy converted object with the unassigned attributes.
    """
    data = item(slices[0], TOP)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = sop_class
    uid = generate_uid(entropy_srcs=[str(s.SOPInstanceUID) for s in slices])
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = uid
    data.NumberOfFrames = len(slices)
    kernel = "CTReconstructionSequence" if sop_class == ENHANCED else "UnassignedPerFrameConvertedAttributesSequence"
    macros = MACROS | {kernel: ("ConvolutionKernel",)}
    data.SharedFunctionalGroupsSequence = [groups_of(slices[0], {k: v for k, v in macros.items() if k in shared})]
    data.PerFrameFunctionalGroupsSequence = []
    for number, source in enumerate(slices, start=1):
        groups = groups_of(source, {k: v for k, v in macros.items() if k not in shared})
        content, kind = Dataset(), Dataset()
        content.StackID, content.InStackPositionNumber = "1", number
        content.FrameAcquisitionDateTime = f"{source.get('AcquisitionDate', '')}101500"
        kind.FrameType = list(source.ImageType)
        groups.FrameContentSequence, groups.CTImageFrameTypeSequence = [content], [kind]
        data.PerFrameFunctionalGroupsSequence.append(groups)
    data.PixelData = b"".join(s.PixelData for s in slices)
    return data


def groups_of(source: Dataset, macros: dict[str, tuple[str, ...]]) -> Dataset:
    """Return the functional groups of one slice."""
    groups = Dataset()
    for sequence, names in macros.items():
        setattr(groups, sequence, [item(source, names)])
    return groups
