"""Every code that a command can give for a problem of an input: its severity, and what it means.

`tmi check`, `import`, `radiomics`, `train`, `predict`, `explain` and `report` take the code of a problem from here, so
that one problem has one code. A test compares `docs/checks.md` with these tables, and the code with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Severity = Literal["error", "warning", "note"]
"""`error`: the input must not be used as it is; `warning`: it is used, and the user should inspect it; `note`: a fact
about how it was used."""


@dataclass(frozen=True)
class Code:
    """One row of a table."""

    severity: Severity
    """Usual severity; what is a warning for one command can stop another one."""
    about: str
    """The problem."""


CASE_CODES: Mapping[str, Code] = MappingProxyType(
    {
        "case-missing": Code("error", "the case folder does not exist"),
        "case-unreadable": Code("error", "the case's files cannot be read"),
        "case-name": Code("error", "the name of the case folder is not UTF-8"),
        "case-record": Code("error", "case.json does not have the format that imports and repairs write"),
        "ct-missing": Code("error", "no ct.nii.gz"),
        "ct-unreadable": Code("error", "the CT is truncated, damaged, not NIfTI, or declares an impossible size"),
        "ct-not-3d": Code("error", "the CT has more than three axes"),
        "ct-affine": Code("error", "the CT has no usable geometry"),
        "ct-nan": Code("error", "the CT has voxels that are not finite"),
        "ct-forms": Code("error", "the CT's sform, qform or `pixdim` disagree in orientation or voxel size"),
        "ct-8bit": Code("error", "the CT's values lie in 0 to 255: an 8-bit picture, not Hounsfield units"),
        "ct-rescaled": Code("error", "the CT's values span 16 or less: normalised, not Hounsfield units"),
        "ct-offset": Code("error", "the CT's air lies near 0: the offset of -1024 was not applied"),
        "ct-not-hu": Code("error", "the CT's values are not Hounsfield units of a body: MR, PET, a windowed CT"),
        "ct-spacing": Code("error", "voxel sizes or a field of view that no CT has: the unit is not millimetres"),
        "ct-unit": Code("warning", "the header declares another unit, but the voxel sizes are in millimetres"),
        "ct-sheared": Code("error", "the axes are not at right angles: gantry tilt was not corrected"),
        "ct-blank-slice": Code("error", "a constant slice inside the volume: a missing slice that was filled"),
        "ct-duplicate-slice": Code("error", "two neighbouring slices have identical voxels"),
        "ct-few-slices": Code("error", "too few slices to cover a liver"),
        "ct-oblique": Code("warning", "the axes are tilted by more than 10 degrees against the patient's axes"),
        "ct-padding": Code("warning", "padding below -1100 HU around the field of view"),
        "ct-fill": Code("warning", "a tenth of a face of the volume is exactly 0 HU: filled with water, not air"),
        "mask-missing": Code("error", "no liver.nii.gz"),
        "mask-unreadable": Code("error", "the mask is truncated, damaged, not NIfTI, or declares an impossible size"),
        "mask-not-3d": Code("error", "the mask has more than three axes"),
        "mask-affine": Code("error", "the mask has no usable geometry"),
        "mask-forms": Code("error", "the mask's sform, qform or `pixdim` disagree in orientation or voxel size"),
        "mask-values": Code("error", "the mask has fractional values: probabilities, or it was interpolated"),
        "mask-labels": Code("warning", "several labels, and none was selected: all are used as the liver"),
        "mask-nan": Code("error", "the mask has voxels that are not finite"),
        "mask-grid": Code("error", "the mask and the CT have different grids"),
        "mask-empty": Code("error", "the mask has no voxel, or none of the selected label"),
        "mask-flipped": Code("error", "the mask fits the liver only when mirrored along one axis"),
        "mask-content": Code("error", "the Hounsfield units under the mask are not those of a liver"),
        "mask-tiny": Code("error", "the mask is much smaller than any liver"),
        "mask-edge": Code("warning", "the mask touches a face of the volume: part of the liver is cut off"),
        "liver-volume": Code("warning", "the liver's volume is outside 500 to 3500 mL"),
        "liver-hu": Code("warning", "the mean value under the mask is outside 5 to 180 HU"),
        "liver-left": Code("warning", "the liver lies on the left: CT and mask mirrored, or situs inversus"),
        "mask-name": Code("warning", "the imported mask names the selected label as something else than a liver"),
        "liver-place": Code("warning", "the mask lies where no liver lies: not below the lungs of a trunk"),
        "radiomics-missing": Code("error", "neither radiomics.csv nor a mask"),
        "radiomics-unreadable": Code("error", "radiomics.csv cannot be read as a table of one case"),
        "radiomics-columns": Code("error", "radiomics.csv is missing a feature, or has an unknown or duplicate one"),
        "radiomics-rows": Code("error", "radiomics.csv does not have exactly one row"),
        "radiomics-value": Code("error", "radiomics.csv has a value that is not a finite number"),
        "radiomics-differ": Code("error", "radiomics.csv differs from the mask's features (only with --recompute)"),
        "radiomics-mask": Code("error", "the mask is too small for texture features"),
        "radiomics-failed": Code("error", "the extraction fails on this CT and mask"),
        "radiomics-stale": Code("warning", "radiomics.csv no longer matches its files, settings or record"),
        "clinical-missing": Code("error", "no clinical.json"),
        "clinical-malformed": Code("error", "clinical.json is not JSON of the documented format"),
        "clinical-unknown-field": Code("error", "a field that is not in the schema"),
        "clinical-type": Code("error", "a value that is not a number, or not one of the field's choices"),
        "clinical-unit": Code("error", "a unit that is not in the schema"),
        "clinical-range": Code("error", "a value outside the plausible range: mistyped, or in another unit"),
        "clinical-unit-suspect": Code("error", "a value outside the plausible range, but typical in another unit"),
        "clinical-unit-doubt": Code(
            "warning", "a value far outside the reference range, but inside it in another unit"
        ),
        "clinical-incomplete": Code("warning", "clinical.json has less than an eighth of the schema's fields"),
        "clinical-truncated": Code("warning", "the clinical text is longer than the text encoder takes"),
        "clinical-date": Code("warning", "the blood date is no ISO date, or the date of the CT is unknown"),
        "dates-apart": Code("warning", "more than 90 days between blood sample and CT"),
        "patient-mismatch": Code("error", "the clinical record and the cohort table name different patients"),
        "duplicate-ct": Code("error", "two cases of a cohort have the same CT"),
        "dicom-unreadable": Code(
            "error",
            "a DICOM file is damaged, without pixels, of an impossible size, or of another format than its name says",
        ),
        "dicom-syntax": Code("error", "a DICOM image has a compression that cannot be decoded here"),
        "dicom-not-ct": Code("error", "no CT series found: other modalities, screenshots, or no DICOM"),
        "dicom-series": Code("error", "several CT series found, or none that matches the selection"),
        "dicom-multiframe": Code("error", "multi-frame images without the functional groups of enhanced CT"),
        "dicom-no-geometry": Code("error", "a slice without position, orientation or pixel spacing"),
        "dicom-no-rescale": Code("error", "slices without slope or intercept: their values are not Hounsfield units"),
        "dicom-mixed-series": Code("error", "one series contains slices of two series"),
        "dicom-4d": Code("error", "several time points or phases in one series"),
        "dicom-duplicate-slice": Code("error", "slices occur twice with the same pixels"),
        "dicom-missing-slice": Code("error", "slices are missing between the first and the last"),
        "dicom-nonuniform-spacing": Code("error", "the distance between slices changes"),
        "dicom-gantry-tilt": Code("error", "the gantry was tilted, so the slices do not form a straight stack"),
        "dicom-rescale-differs": Code("warning", "slope and intercept differ between slices; they are applied"),
        "dicom-patient-mismatch": Code("error", "CT and mask name different patients in their DICOM headers"),
        "dicom-frame-mismatch": Code("warning", "CT and mask name different frames of reference"),
        "dicom-patient-id": Code("warning", "DICOM series and clinical record name different patient ids"),
        "mask-label": Code("error", "the selected label, segment or ROI does not exist, or several match"),
        "mask-gap": Code("warning", "planes inside the mask are empty: it was not drawn on every slice"),
        "mask-holes": Code("warning", "holes inside the mask: a tumour or vessel that has a label of its own"),
        "mask-contours": Code("warning", "contours of an RTSTRUCT cross, enclose no voxel, or were left out"),
        "mask-outside": Code("warning", "part of the mask lies outside the CT"),
        "duplicate-radiomics": Code("error", "two cases of a cohort have the same radiomics"),
        "duplicate-record": Code("warning", "two patients of a cohort have the same clinical values"),
    }
)
"""Checks of a case, by any command: code -> row."""

TABLE_CODES: Mapping[str, Code] = MappingProxyType(
    {
        "id": Code("error", "a row without a valid case id or patient id"),
        "case-twice": Code("error", "several rows have one case id"),
        "row": Code("error", "a cell or row that cannot be read"),
        "number": Code("error", "a cell without a number where the mapping names one"),
        "date": Code("error", "a cell without a date where the mapping names one"),
        "no-label": Code("warning", "a row without a label under the mapping's rule"),
        "import": Code("error", "the options or files of a row cannot be used"),
    }
)
"""Rows of a table, by `tmi import --table`: code -> row."""

USE_CODES: Mapping[str, Code] = MappingProxyType(
    {
        "case-files": Code("error", "a file of the case cannot be written, or another command is writing it"),
        "radiomics-exists": Code("error", "radiomics.csv exists, and would be replaced by other values"),
        "radiomics-extracted": Code("note", "radiomics were extracted from the mask, because there is no table"),
        "radiomics-extractor": Code("warning", "radiomics were extracted by the slow reference path"),
        "radiomics-undefined": Code("warning", "features without a finite value in this CT and mask"),
        "radiomics-imputed": Code("warning", "features are missing and were set to 0 after scaling"),
        "radiomics-incomplete": Code("warning", "more than a tenth of the features are missing: an alert"),
        "radiomics-clipped": Code("warning", "features outside the training range were clipped to it"),
        "unlike-training": Code(
            "warning", "more than a tenth of the features were clipped, and trust cannot be assessed: an alert"
        ),
        "not-trusted": Code("warning", "the case is out of distribution, unlike the training cases: an alert"),
        "other-network": Code("note", "the bundle's network is not TMI-CLNet with all three inputs"),
        "synthetic-model": Code("warning", "the models were trained on synthetic cases"),
        "answer-not-finite": Code("error", "the network's output is not a finite number"),
        "attribution-failed": Code("error", "the attributions of an explanation cannot be computed"),
        "pictures-failed": Code("error", "the pictures of an explanation cannot be drawn"),
        "cohort-refused": Code("error", "every case of a cohort was rejected"),
    }
)
"""Use of a case by `radiomics`, `train`, `predict`, `explain` and `report`: code -> row."""

COMMAND_CODES: Mapping[str, Code] = MappingProxyType(
    {
        "usage": Code("error", "a command, option, setting or path is invalid (exit code 2)"),
        "parity": Code("error", "a graph differs from the validated model (exit code 4)"),
        "unavailable": Code("error", "an engine, a package, memory or disk space is not available (exit code 5)"),
        "damaged": Code("error", "a bundle or run is damaged, modified or not trusted (exit code 6)"),
        "unexpected": Code("error", "any other error (exit code 1)"),
    }
)
"""Errors of a whole command, which are not about a case: code -> row."""

CODES: Mapping[str, Code] = MappingProxyType({**CASE_CODES, **TABLE_CODES, **USE_CODES, **COMMAND_CODES})
"""Every code -> row."""
RETIRED_CODES: Mapping[str, str] = MappingProxyType(
    {
        "input": "`tmi-prediction/1`: any warning of a check; each has the code of its check now",
        "text-truncated": "`tmi-prediction/1`: `clinical-truncated` now",
    }
)
"""Codes that only documents of earlier versions contain -> what they were."""
