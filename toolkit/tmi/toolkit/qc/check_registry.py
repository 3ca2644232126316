"""Table of all checks of a case: code, severity and description. A test compares `docs/checks.md` with it."""

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
    """`error`: the case must not be used as it is; training and prediction reject it if the check needs one case only.
    `warning`: the case is used, and the user should inspect it."""
    about: str
    """The problem that the check detects."""


CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "case-missing": Check("error", "the case folder does not exist"),
        "case-unreadable": Check("error", "the case's files cannot be read"),
        "case-name": Check("error", "the name of the case folder is not UTF-8"),
        "case-record": Check("error", "case.json does not have the format that imports and repairs write"),
        "ct-missing": Check("error", "no ct.nii.gz"),
        "ct-unreadable": Check("error", "the CT is truncated, damaged, not NIfTI, or declares an impossible size"),
        "ct-not-3d": Check("error", "the CT has more than three axes"),
        "ct-affine": Check("error", "the CT has no usable geometry"),
        "ct-nan": Check("error", "the CT has voxels that are not finite"),
        "ct-forms": Check("error", "the CT's sform, qform or `pixdim` disagree in orientation or voxel size"),
        "ct-8bit": Check("error", "the CT's values lie in 0 to 255: an 8-bit picture, not Hounsfield units"),
        "ct-rescaled": Check("error", "the CT's values span 16 or less: normalised, not Hounsfield units"),
        "ct-offset": Check("error", "the CT's air lies near 0: the offset of -1024 was not applied"),
        "ct-not-hu": Check("error", "the CT's values are not Hounsfield units of a body: MR, PET, a windowed CT"),
        "ct-spacing": Check("error", "voxel sizes or a field of view that no CT has: the unit is not millimetres"),
        "ct-unit": Check("warning", "the header declares another unit, but the voxel sizes are in millimetres"),
        "ct-sheared": Check("error", "the axes are not at right angles: gantry tilt was not corrected"),
        "ct-blank-slice": Check("error", "a constant slice inside the volume: a missing slice that was filled"),
        "ct-duplicate-slice": Check("error", "two neighbouring slices have identical voxels"),
        "ct-few-slices": Check("error", "too few slices to cover a liver"),
        "ct-oblique": Check("warning", "the axes are tilted by more than 10 degrees against the patient's axes"),
        "ct-padding": Check("warning", "padding below -1100 HU around the field of view"),
        "ct-fill": Check("warning", "a tenth of a face of the volume is exactly 0 HU: filled with water, not air"),
        "mask-missing": Check("error", "no liver.nii.gz"),
        "mask-unreadable": Check("error", "the mask is truncated, damaged, not NIfTI, or declares an impossible size"),
        "mask-not-3d": Check("error", "the mask has more than three axes"),
        "mask-affine": Check("error", "the mask has no usable geometry"),
        "mask-forms": Check("error", "the mask's sform, qform or `pixdim` disagree in orientation or voxel size"),
        "mask-values": Check("error", "the mask has fractional values: probabilities, or it was interpolated"),
        "mask-labels": Check("warning", "several labels, and none was selected: all are used as the liver"),
        "mask-nan": Check("error", "the mask has voxels that are not finite"),
        "mask-grid": Check("error", "the mask and the CT have different grids"),
        "mask-empty": Check("error", "the mask has no voxel, or none of the selected label"),
        "mask-flipped": Check("error", "the mask fits the liver only when mirrored along one axis"),
        "mask-content": Check("error", "the Hounsfield units under the mask are not those of a liver"),
        "mask-tiny": Check("error", "the mask is much smaller than any liver"),
        "mask-edge": Check("warning", "the mask touches a face of the volume: part of the liver is cut off"),
        "liver-volume": Check("warning", "the liver's volume is outside 500 to 3500 mL"),
        "liver-hu": Check("warning", "the mean value under the mask is outside 5 to 180 HU"),
        "liver-left": Check("warning", "the liver lies on the left: CT and mask mirrored, or situs inversus"),
        "liver-place": Check("warning", "the mask lies where no liver lies: not below the lungs of a trunk"),
        "radiomics-missing": Check("error", "neither radiomics.csv nor a mask"),
        "radiomics-unreadable": Check("error", "radiomics.csv cannot be read as a table of one case"),
        "radiomics-columns": Check("error", "radiomics.csv is missing a feature, or has an unknown or duplicate one"),
        "radiomics-rows": Check("error", "radiomics.csv does not have exactly one row"),
        "radiomics-value": Check("error", "radiomics.csv has a value that is not a finite number"),
        "radiomics-differ": Check("error", "radiomics.csv differs from the mask's features (only with --recompute)"),
        "radiomics-mask": Check("error", "the mask is too small for texture features"),
        "radiomics-failed": Check("error", "the extraction fails on this CT and mask"),
        "radiomics-stale": Check("warning", "radiomics.csv no longer matches its files, settings or record"),
        "clinical-missing": Check("error", "no clinical.json"),
        "clinical-malformed": Check("error", "clinical.json is not JSON of the documented format"),
        "clinical-unknown-field": Check("error", "a field that is not in the schema"),
        "clinical-type": Check("error", "a value that is not a number, or not one of the field's choices"),
        "clinical-unit": Check("error", "a unit that is not in the schema"),
        "clinical-range": Check("error", "a value outside the plausible range: mistyped, or in another unit"),
        "clinical-unit-suspect": Check("error", "a value outside the plausible range, but typical in another unit"),
        "clinical-unit-doubt": Check(
            "warning", "a value far outside the reference range, but inside it in another unit"
        ),
        "clinical-incomplete": Check("warning", "clinical.json has less than an eighth of the schema's fields"),
        "clinical-truncated": Check("warning", "the clinical text is longer than the text encoder takes"),
        "clinical-date": Check("warning", "the blood date is no ISO date, or the date of the CT is unknown"),
        "dates-apart": Check("warning", "more than 90 days between blood sample and CT"),
        "patient-mismatch": Check("error", "the clinical record and the cohort table name different patients"),
        "duplicate-ct": Check("error", "two cases of a cohort have the same CT"),
        "dicom-unreadable": Check(
            "error",
            "a DICOM file is damaged, without pixels, of an impossible size, or of another format than its name says",
        ),
        "dicom-syntax": Check("error", "a DICOM image has a compression that cannot be decoded here"),
        "dicom-not-ct": Check("error", "no CT series found: other modalities, screenshots, or no DICOM"),
        "dicom-series": Check("error", "several CT series found, or none that matches the selection"),
        "dicom-multiframe": Check("error", "the series is stored as multi-frame images"),
        "dicom-no-geometry": Check("error", "a slice without position, orientation or pixel spacing"),
        "dicom-no-rescale": Check("error", "slices without slope or intercept: their values are not Hounsfield units"),
        "dicom-mixed-series": Check("error", "one series contains slices of two series"),
        "dicom-4d": Check("error", "several time points or phases in one series"),
        "dicom-duplicate-slice": Check("error", "slices occur twice with the same pixels"),
        "dicom-missing-slice": Check("error", "slices are missing between the first and the last"),
        "dicom-nonuniform-spacing": Check("error", "the distance between slices changes"),
        "dicom-gantry-tilt": Check("error", "the gantry was tilted, so the slices do not form a straight stack"),
        "dicom-rescale-differs": Check("warning", "slope and intercept differ between slices; they are applied"),
        "dicom-patient-mismatch": Check("error", "CT and mask name different patients in their DICOM headers"),
        "dicom-frame-mismatch": Check("warning", "CT and mask name different frames of reference"),
        "dicom-patient-id": Check("warning", "DICOM series and clinical record name different patient ids"),
        "mask-label": Check("error", "the selected label, segment or ROI does not exist, or several match"),
        "mask-gap": Check("warning", "planes inside the mask are empty: it was not drawn on every slice"),
        "mask-holes": Check("warning", "holes inside the mask: a tumour or vessel that has a label of its own"),
        "mask-contours": Check("warning", "contours of an RTSTRUCT cross, enclose no voxel, or were left out"),
        "mask-outside": Check("warning", "part of the mask lies outside the CT"),
        "duplicate-radiomics": Check("error", "two cases of a cohort have the same radiomics"),
        "duplicate-record": Check("warning", "two patients of a cohort have the same clinical values"),
    }
)
"""Code -> check."""
ALERTS = frozenset({"clinical-incomplete", "liver-place"})
"""Warnings that are shown before a prediction, because it must not be relied on."""
