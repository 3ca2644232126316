"""Small DICOM series of an analytic phantom, with SEG and RTSTRUCT of its liver.

HU is a function of the position in LPS millimetres, so a voxel read back from any acquisition grid must equal
`hounsfield_at` of its position. The phantom is an ellipse with a spine and an ellipsoid for the liver.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
OBLIQUE = (0.9961947, 0.0871557, 0.0, -0.0858317, 0.9810603, 0.1736482)
LIVER_CENTRE_MM = np.array([-50.0, -12.0, 8.0])
LIVER_AXES_MM = np.array([62.0, 55.0, 48.0])


def hounsfield_at(lps_mm: np.ndarray) -> np.ndarray:
    """HU, rounded to integers, at LPS positions [..., 3] in mm."""
    x, y, z = np.moveaxis(lps_mm, -1, 0)
    hu = np.full(x.shape, -1000.0)
    hu[(x / 160) ** 2 + (y / 115) ** 2 < 1] = 20
    hu = np.where(hu > 0, hu + 12 * np.sin(x / 23 + 0.4) + 0.15 * z, hu)
    lungs = (z > 60) & ((x / 110) ** 2 + (y / 50) ** 2 < 1)
    hu[lungs] = -800
    hu[((x - 3) / 18) ** 2 + ((y - 75) / 20) ** 2 < 1] = 420
    liver = liver_at(lps_mm)
    hu[liver] = (95 + 0.1 * x + 0.2 * z)[liver]
    return np.rint(hu).astype(np.int16)


def liver_at(lps_mm: np.ndarray) -> np.ndarray:
    """Whether LPS positions [..., 3] in mm lie in the liver."""
    return (((lps_mm - LIVER_CENTRE_MM) / LIVER_AXES_MM) ** 2).sum(axis=-1) < 1


@dataclass(frozen=True, kw_only=True)
class SeriesSpec:
    """Acquisition grid of a series; its centre lies at the origin."""

    slices: int = 24
    rows: int = 40
    columns: int = 60
    spacing_mm: tuple[float, float] = (6.5, 6.0)
    """Spacing between rows and between columns."""
    step_mm: float = 6.0
    orientation: tuple[float, ...] = AXIAL
    tilt_deg: float = 0.0
    """Gantry tilt: each slice is shifted along the column direction against the one before."""
    slope: float = 1.0
    intercept: float = -1024.0
    series_number: int = 3

    def position_of(self, k: float) -> np.ndarray:
        """ImagePositionPatient of slice k in LPS mm."""
        row, column = np.array(self.orientation[:3]), np.array(self.orientation[3:])
        normal = np.cross(row, column)
        along = (k - (self.slices - 1) / 2) * self.step_mm
        middle = row * self.spacing_mm[1] * (self.columns - 1) / 2 + column * self.spacing_mm[0] * (self.rows - 1) / 2
        return normal * along + column * along * math.tan(math.radians(self.tilt_deg)) - middle

    def positions_of(self, k: float) -> np.ndarray:
        """LPS positions of the pixels of slice k in mm, [rows, columns, 3]."""
        row, column = np.array(self.orientation[:3]), np.array(self.orientation[3:])
        across = np.arange(self.columns)[None, :, None] * self.spacing_mm[1] * row
        down = np.arange(self.rows)[:, None, None] * self.spacing_mm[0] * column
        return self.position_of(k) + across + down


def make_slices(spec: SeriesSpec | None = None, *, seed: int = 0) -> list[Dataset]:
    """Complete CT datasets in acquisition order."""
    spec = spec or SeriesSpec()
    study, series, frame = (generate_uid(entropy_srcs=[str(seed), name]) for name in ("study", "series", "frame"))
    return [_slice(spec, k, study, series, frame) for k in range(spec.slices)]


def _slice(spec: SeriesSpec, k: int, study: str, series: str, frame: str) -> Dataset:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = CTImageStorage
    data.SOPClassUID = CTImageStorage
    data.SOPInstanceUID = generate_uid(entropy_srcs=[series, str(k)])
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, series, frame
    data.Modality = "CT"
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.PatientID, data.PatientName = "P-ONE", "Phantom^Synthetic"
    data.PatientBirthDate = data.PatientSex = data.StudyID = data.AccessionNumber = data.ReferringPhysicianName = ""
    data.StudyDate = data.SeriesDate = data.AcquisitionDate = "20200310"
    data.StudyTime = data.SeriesTime = "101500"
    data.SeriesNumber, data.InstanceNumber, data.AcquisitionNumber = spec.series_number, k + 1, 1
    data.ImagePositionPatient = [round(float(v), 6) for v in spec.position_of(k)]
    data.ImageOrientationPatient = list(spec.orientation)
    data.PixelSpacing = list(spec.spacing_mm)
    data.SliceThickness = spec.step_mm
    data.ConvolutionKernel = "B30f"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = spec.rows, spec.columns
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.RescaleSlope, data.RescaleIntercept, data.RescaleType = spec.slope, spec.intercept, "HU"
    set_hounsfield(data, hounsfield_at(spec.positions_of(k)))
    return data


def set_hounsfield(data: Dataset, hu: np.ndarray) -> None:
    """Store HU with the rescale slope and intercept of the slice."""
    stored = np.rint((hu.astype(np.float64) - float(data.RescaleIntercept)) / float(data.RescaleSlope))
    data.PixelData = stored.astype("<i2").tobytes()


def write_slices(folder: Path, slices: Sequence[Dataset], *, prefix: str = "IM", shuffle: int | None = None) -> Path:
    """Write each slice to a file; with `shuffle`, a seed, the order of the file names is random."""
    folder.mkdir(parents=True, exist_ok=True)
    order = np.arange(len(slices)) if shuffle is None else np.random.default_rng(shuffle).permutation(len(slices))
    for name, k in enumerate(order):
        slices[k].save_as(folder / f"{prefix}{name:04d}.dcm", enforce_file_format=True)
    return folder


def write_series(folder: Path, spec: SeriesSpec | None = None, *, shuffle: int | None = 1) -> Path:
    """Write a valid series."""
    return write_slices(folder, make_slices(spec), shuffle=shuffle)


def compress(slices: Sequence[Dataset], syntax: str) -> list[Dataset]:
    """Compress the slices in place with a lossless transfer syntax."""
    for data in slices:
        data.compress(syntax, generate_instance_uid=False)
    return list(slices)


def compress_with_gdcm(data: Dataset, path: Path) -> None:
    """Write one slice as lossless JPEG with GDCM; pydicom cannot encode it."""
    import SimpleITK

    pixels = np.frombuffer(data.PixelData, dtype="<i2").reshape(1, data.Rows, data.Columns)
    writer = SimpleITK.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.UseCompressionOn()
    writer.SetCompressor("JPEG")
    writer.SetFileName(str(path))
    writer.Execute(SimpleITK.GetImageFromArray(pixels))
    coded = pydicom.dcmread(path)
    merged = Dataset()
    merged.update(data)
    merged.file_meta = data.file_meta
    merged.file_meta.TransferSyntaxUID = coded.file_meta.TransferSyntaxUID
    merged.PixelData = coded.PixelData
    merged["PixelData"].is_undefined_length = True
    merged.save_as(path, enforce_file_format=True)


def write_seg(path: Path, slices: Sequence[Dataset], masks: Sequence[np.ndarray], labels: Sequence[str]) -> Path:
    """Write a DICOM SEG with one segment for each mask, [slices, rows, columns] in the order of `slices`."""
    import highdicom
    from pydicom.sr.codedict import codes

    descriptions = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=codes.SCT.Organ,
            segmented_property_type=codes.SCT.Liver if label == "hepar" else codes.SCT.Spleen,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, label in enumerate(labels, start=1)
    ]
    segmentation = highdicom.seg.Segmentation(
        source_images=list(slices),
        pixel_array=np.stack(masks, axis=-1).astype(np.uint8),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=generate_uid(entropy_srcs=["seg"]),
        series_number=9,
        sop_instance_uid=generate_uid(entropy_srcs=["seg", "1"]),
        instance_number=1,
        manufacturer="none",
        manufacturer_model_name="none",
        software_versions="0",
        device_serial_number="0",
    )
    segmentation.save_as(path)
    return path


def write_rtstruct(path: Path, model: Dataset, rois: dict[str, list[np.ndarray]]) -> Path:
    """Write an RTSTRUCT: ROI name -> closed contours [points, 3] in LPS mm."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["rt"])
    data.Modality = "RTSTRUCT"
    data.PatientID, data.FrameOfReferenceUID = model.PatientID, model.FrameOfReferenceUID
    data.StructureSetROISequence, data.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(rois.items(), start=1):
        roi, contours_of_roi = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        contours_of_roi.ReferencedROINumber, contours_of_roi.ContourSequence = number, []
        for points in contours:
            contour = Dataset()
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(points)
            contour.ContourData = [round(float(v), 4) for v in points.ravel()]
            contours_of_roi.ContourSequence.append(contour)
        data.StructureSetROISequence.append(roi)
        data.ROIContourSequence.append(contours_of_roi)
    data.save_as(path, enforce_file_format=True)
    return path


def liver_contour(spec: SeriesSpec, k: float, *, points: int = 180, scale: float = 1.0) -> np.ndarray | None:
    """Contour of the liver in axial slice k, [points, 3] in LPS mm; None if the slice does not cut the liver."""
    z = float(spec.position_of(k)[2])
    rest = 1 - ((z - LIVER_CENTRE_MM[2]) / LIVER_AXES_MM[2]) ** 2
    if rest <= 0:
        return None
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    size = LIVER_AXES_MM[:2] * math.sqrt(rest) * scale
    xy = LIVER_CENTRE_MM[:2] + np.stack([np.cos(angle), np.sin(angle)], axis=1) * size
    return np.concatenate([xy, np.full((points, 1), z)], axis=1)


def liver_masks(spec: SeriesSpec) -> np.ndarray:
    """Mask of the liver on the grid of the series, [slices, rows, columns]."""
    return np.stack([liver_at(spec.positions_of(k)) for k in range(spec.slices)])


def positions_of_volume(shape_DHW: tuple[int, ...], affine_xyz: np.ndarray) -> np.ndarray:
    """LPS positions of the voxels of a canonical (RAS+) volume in mm, [D, H, W, 3]."""
    z, y, x = np.meshgrid(*[np.arange(n) for n in shape_DHW], indexing="ij")
    ras = np.stack([x, y, z], axis=-1) @ affine_xyz[:3, :3].T + affine_xyz[:3, 3]
    return ras * np.array([-1.0, -1.0, 1.0])
