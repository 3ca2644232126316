"""Every check of a case: its code, how grave it is, what it looks for. `docs/checks.md` is held against this table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Check:
    """One row of the table."""

    severity: Severity
    """`error`: not to be used as it is; what one case shows by itself, training and prediction refuse.
    `warning`: it is used, and the user should look."""
    about: str
    """What is wrong."""


CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "case-missing": Check("error", "the case folder is not there"),
        "case-unreadable": Check("error", "the case's files may not be read"),
        "case-record": Check("error", "case.json is not of the form that imports and repairs write"),
        "ct-missing": Check("error", "no ct.nii.gz"),
        "ct-unreadable": Check("error", "the CT is truncated, damaged, no NIfTI, or claims an absurd size"),
        "ct-not-3d": Check("error", "the CT has more than three axes"),
        "ct-affine": Check("error", "the CT has no usable geometry"),
        "ct-nan": Check("error", "the CT holds voxels that are not finite"),
        "ct-forms": Check("error", "the CT's two affines (sform, qform) disagree in orientation or voxel size"),
        "ct-8bit": Check("error", "the CT's values lie in 0 to 255: a picture, not Hounsfield units"),
        "ct-rescaled": Check("error", "the CT's values span 16 or less: normalised, not Hounsfield units"),
        "ct-offset": Check("error", "the CT's air lies near 0: the offset of -1024 was left out"),
        "ct-not-hu": Check("error", "the CT's values are no Hounsfield units of a body: MR, PET, a windowed CT"),
        "ct-spacing": Check("error", "voxel sizes or a width that no CT has: the unit is not millimetres"),
        "ct-unit": Check("warning", "the header declares another unit than the millimetres the voxels have"),
        "ct-sheared": Check("error", "the axes are not at right angles: gantry tilt left in the data"),
        "ct-blank-slice": Check("error", "a slice of one single value inside the volume: a missing slice, filled"),
        "ct-duplicate-slice": Check("error", "two neighbouring slices hold the very same voxels"),
        "ct-few-slices": Check("error", "fewer slices than a liver needs"),
        "ct-oblique": Check("warning", "the axes are tilted by more than 10 degrees against the patient's"),
        "ct-padding": Check("warning", "padding below -1100 HU around the field of view"),
        "ct-fill": Check("warning", "a tenth of a face of the volume is exactly 0 HU: filled with water, not air"),
        "mask-missing": Check("error", "no liver.nii.gz"),
        "mask-unreadable": Check("error", "the mask is truncated, damaged, no NIfTI, or claims an absurd size"),
        "mask-not-3d": Check("error", "the mask has more than three axes"),
        "mask-affine": Check("error", "the mask has no usable geometry"),
        "mask-forms": Check("error", "the mask's two affines (sform, qform) disagree in orientation or voxel size"),
        "mask-values": Check("error", "the mask holds fractions: probabilities, or interpolated"),
        "mask-labels": Check("warning", "several labels, and none was asked for: all are taken as the liver"),
        "mask-nan": Check("error", "the mask holds voxels that are not finite"),
        "mask-grid": Check("error", "the mask lies on another grid than the CT"),
        "mask-empty": Check("error", "the mask has no voxel, or none of the label asked for"),
        "mask-flipped": Check("error", "the mask fits the liver only when mirrored along one axis"),
        "mask-content": Check("error", "what lies under the mask is no liver by its Hounsfield units"),
        "mask-tiny": Check("error", "the mask is far smaller than any liver"),
        "mask-edge": Check("warning", "the mask touches a face of the volume: a part of the liver is cut off"),
        "liver-volume": Check("warning", "the liver's volume is outside 500 to 3500 mL"),
        "liver-hu": Check("warning", "the mean under the mask is outside 5 to 180 HU"),
        "liver-left": Check("warning", "the liver lies on the left: CT and mask mirrored, or situs inversus"),
        "radiomics-missing": Check("error", "neither radiomics.csv nor a mask"),
        "radiomics-unreadable": Check("error", "radiomics.csv cannot be read as a table of one case"),
        "radiomics-columns": Check("error", "radiomics.csv lacks a feature, or has an unknown or doubled one"),
        "radiomics-rows": Check("error", "radiomics.csv has not exactly one row"),
        "radiomics-value": Check("error", "radiomics.csv holds something that is no finite number"),
        "radiomics-differ": Check("error", "radiomics.csv is not what the mask gives (only with --recompute)"),
        "radiomics-mask": Check("error", "the mask is too small for texture features"),
        "radiomics-stale": Check("warning", "radiomics.csv no longer fits its files, settings or record"),
        "clinical-missing": Check("error", "no clinical.json"),
        "clinical-malformed": Check("error", "clinical.json is not JSON of the form asked for"),
        "clinical-unknown-field": Check("error", "a field that the schema lacks"),
        "clinical-type": Check("error", "a value that is no number, or none of a field's choices"),
        "clinical-unit": Check("error", "a unit that the schema lacks"),
        "clinical-range": Check("error", "a value outside the plausible range: mistyped, or in another unit"),
        "clinical-unit-suspect": Check("error", "a value outside the plausible range that is usual in another unit"),
        "clinical-unit-doubt": Check("warning", "a value far from the reference range, though in it in another unit"),
        "dates-apart": Check("warning", "more than 90 days between blood sample and CT"),
        "patient-mismatch": Check("error", "the clinical record belongs to another patient than the cohort says"),
        "duplicate-ct": Check("error", "two cases of a cohort hold the very same CT"),
        "dicom-unreadable": Check("error", "a DICOM file is truncated, damaged, or claims an absurd size"),
        "dicom-syntax": Check("error", "a DICOM image is compressed in a way that cannot be decoded here"),
        "dicom-not-ct": Check("error", "no CT series is there: other modalities, screenshots, or no DICOM"),
        "dicom-series": Check("error", "several CT series are there, or none of the name asked for"),
        "dicom-multiframe": Check("error", "the series is stored as multi-frame images"),
        "dicom-no-geometry": Check("error", "a slice lacks position, orientation or pixel spacing"),
        "dicom-no-rescale": Check("error", "slices lack slope or intercept, so their values are no Hounsfield units"),
        "dicom-mixed-series": Check("error", "slices of two series are mixed in one"),
        "dicom-4d": Check("error", "several time points or phases in one series"),
        "dicom-duplicate-slice": Check("error", "slices are there twice, with the same pixels"),
        "dicom-missing-slice": Check("error", "slices are missing between the first and the last"),
        "dicom-nonuniform-spacing": Check("error", "the distance between slices changes"),
        "dicom-gantry-tilt": Check("error", "the gantry was tilted, so the slices form no straight stack"),
        "dicom-rescale-differs": Check("warning", "slope and intercept differ between slices; they are applied"),
        "dicom-patient-mismatch": Check("error", "CT and mask name different patients in their DICOM headers"),
        "dicom-frame-mismatch": Check("warning", "CT and mask name different frames of reference"),
        "dicom-patient-id": Check("warning", "the DICOM series names another patient id than the clinical record"),
        "mask-label": Check("error", "the label, segment or ROI asked for is not there, or several could be meant"),
        "mask-gap": Check("warning", "slices inside an RTSTRUCT's structure have no contour"),
        "mask-outside": Check("warning", "a part of the mask lies outside the CT"),
        "duplicate-radiomics": Check("error", "two cases of a cohort hold the very same radiomics"),
        "duplicate-record": Check("warning", "two patients of a cohort have the very same clinical values"),
    }
)
"""Code -> check."""
