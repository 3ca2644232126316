"""One case from real files: CT, mask, clinical record and radiomics into a case folder that identifies nobody.

What cannot be trusted (geometry, modality, grid, patient) stops the import and nothing is written. What the case holds
but should not be used (too few slices, a mask on no liver) is written and found by the checks of `tmi check`, whose
findings come back with the case. Originals are only read.

The folder gets voxels, the affine, the clinical record's own keys, the features by name, and `case.json`. No header of
the sources is copied; NIfTI headers are new, and their free text is empty.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.cases.case import CLINICAL_FILE, CT_FILE, MASK_FILE, RADIOMICS_FILE, Case, is_portable_name, open_case
from tmi.toolkit.cases.provenance import CaseRecord, Repair, write_case_record
from tmi.toolkit.clinical.record import KEYS, MAX_BYTES
from tmi.toolkit.errors import InputRejectedError, UsageError
from tmi.toolkit.imaging.volume import Volume
from tmi.toolkit.ingest.image_files import RawFinding, ReadCt, is_image_file, read_image_ct
from tmi.toolkit.qc.case_checks import Finding, check_case
from tmi.toolkit.qc.check_registry import CHECKS
from tmi.toolkit.qc.image_checks import check_ct
from tmi.toolkit.radiomics.table import read_table, write_table
from tmi.toolkit.storage.atomic_files import require_absent, staged_folder, write_json
from tmi.toolkit.storage.hashing import sha256_bytes, sha256_file

IMPORT_FIXES: Mapping[str, str] = MappingProxyType(
    {
        "dicom-duplicate-slice": "drop slices that are copies of another",
        "dicom-missing-slice": "interpolate up to two neighbouring slices that are missing",
        "dicom-nonuniform-spacing": "resample along the stack to the usual step",
        "dicom-gantry-tilt": "shear the slices onto a straight grid",
        "dicom-no-rescale": "take the stored values as HU",
        "ct-padding": "set padding to -1024 HU",
        "mask-grid": "resample the mask onto the CT's grid, nearest neighbour",
    }
)
"""Code -> what `--fix CODE` does during an import. Nothing of it happens unasked."""
NOT_CT_CODES = frozenset({"ct-not-hu", "ct-8bit", "ct-rescaled", "ct-offset", "ct-spacing"})
"""Findings of the content that stop the import: what was given is no CT."""
PENDING_CODES = frozenset({"clinical-missing", "radiomics-missing"})
"""Findings that say what is still to be added, where it was not given."""
PADDING_BELOW_HU = -1100


@dataclass(frozen=True, kw_only=True)
class ImportedCase:
    """What an import made."""

    case: Case
    """The case folder that was written."""
    findings: tuple[Finding, ...]
    """What the reader and `tmi check` found, errors included; empty for a good case."""
    missing: tuple[Finding, ...]
    """What is still to be added before the case can be used."""
    repairs: tuple[Repair, ...]
    """Repairs that were asked for and made."""
    source: Mapping[str, Any]
    """As in `case.json`."""
    label: str | None
    """Which label of the mask was taken, and why; None without a mask."""

    @property
    def rejected(self) -> bool:
        """Whether training and prediction would refuse the case for what it holds."""
        return any(f.severity == "error" for f in self.findings)


def import_case(
    out: Path,
    *,
    ct: Path | None,
    mask: Path | None = None,
    series: str | None = None,
    mask_label: str | int | None = None,
    roi: str | None = None,
    clinical: Path | Mapping[str, Any] | None = None,
    radiomics: Path | None = None,
    patient_id: str | None = None,
    fixes: Collection[str] = (),
    force: bool = False,
) -> ImportedCase:
    """Write one case folder, whole or not at all.

    Args:
        out: the new case folder; its name becomes the case id.
        ct: folder of a DICOM series, or NIfTI, NRRD or MetaImage file; None makes a case without images.
        mask: NIfTI, NRRD, MetaImage, DICOM SEG or RTSTRUCT.
        series: SeriesInstanceUID or number of the listing, where the folder holds several CT series.
        mask_label: label or segment, by number or name; None chooses the liver by rule.
        roi: the same for the ROI of an RTSTRUCT; only one of the two may be given.
        clinical: a `clinical.json`, or its content. A blood_date is reduced to the distance in days to the CT.
        radiomics: a table of the features, by name.
        patient_id: the patient that the clinical record must belong to; written into it where it has none.
        fixes: keys of `IMPORT_FIXES`.
        force: replace a case that is there.

    Raises:
        InputRejectedError: with the code of the check; nothing was written.
        UsageError: an unknown repair, both `mask_label` and `roi`, a mask without a CT, nothing to import, or `out`
            exists.
    """
    _validate_arguments(out, ct, mask, mask_label, roi, clinical, radiomics, fixes)
    require_absent(out, force=force, kind="case")
    case_id = out.resolve().name
    record = None if clinical is None else _clinical(clinical, patient_id, case_id)
    features = None if radiomics is None else read_table(radiomics, case_id=case_id)
    found: list[RawFinding] = []
    repairs: list[Repair] = []
    source: dict[str, Any] = {}
    read = label = None
    with staged_folder(out) as stage:
        if ct is not None:
            read = _read_ct(ct, series, fixes, repairs, case_id)
            found += read.findings
            source["ct"] = {**read.source, "shape_DHW": list(read.volume.array_DHW.shape)}
            write_volume(stage / CT_FILE, read.volume)
            if mask is not None:
                from tmi.toolkit.ingest.mask_importer import import_mask

                wanted = mask_label if roi is None else roi
                imported = import_mask(mask, read, wanted=wanted, fixes=fixes, case_id=case_id)
                write_volume(stage / MASK_FILE, imported.volume)
                found += imported.findings
                repairs += imported.repairs
                source["mask"], label = dict(imported.source), imported.label.explanation
        days = None
        if record is not None:
            days = days_between(record.pop("blood_date", None), None if read is None else read.date)
            if _names_another_patient(record, read):
                what = "the DICOM series names another patient id than the clinical record"
                found.append(("dicom-patient-id", what, "look whether both are of one patient, or pseudonymised apart"))
            write_json(stage / CLINICAL_FILE, record)
            source["clinical"] = {"sha256": _digest(clinical)}
        if features is not None and radiomics is not None:
            write_table(stage / RADIOMICS_FILE, features)
            source["radiomics"] = {"sha256": sha256_file(radiomics)}
        write_case_record(stage, CaseRecord(source=source, repairs=tuple(repairs), days_from_blood_to_ct=days))
    return _outcome(open_case(out), found, tuple(repairs), source, label)


def _outcome(
    case: Case, found: list[RawFinding], repairs: tuple[Repair, ...], source: Mapping[str, Any], label: str | None
) -> ImportedCase:
    """What the reader found and what `tmi check` finds in the case that was written."""
    findings = [
        Finding(case_id=case.case_id, code=code, severity=CHECKS[code].severity, message=what, fix=fix)
        for code, what, fix in found
    ]
    findings += check_case(case)
    missing = tuple(f for f in findings if _is_pending(f, case))
    return ImportedCase(
        case=case,
        findings=tuple(f for f in findings if f not in missing),
        missing=missing,
        repairs=repairs,
        source=source,
        label=label,
    )


def _validate_arguments(
    out: Path, ct: Path | None, mask: Path | None, mask_label: str | int | None, roi: str | None,
    clinical: Path | Mapping[str, Any] | None, radiomics: Path | None, fixes: Collection[str],
) -> None:  # fmt: skip
    if unknown := sorted(set(fixes) - set(IMPORT_FIXES)):
        raise UsageError(f"no repair {unknown[0]!r} during an import", fix=f"known: {', '.join(IMPORT_FIXES)}")
    if mask_label is not None and roi is not None:
        raise UsageError("both a mask label and a ROI are given", fix="give one of --mask-label and --roi")
    if mask is not None and ct is None:
        raise UsageError("a mask is given without its CT", fix="give the CT with --ct")
    if ct is None and clinical is None and radiomics is None:
        raise UsageError("nothing to import", fix="give --ct, --clinical or --radiomics")
    place = out.resolve()
    if not is_portable_name(place.name):
        raise UsageError("the case's name cannot be printed", fix="give the case's folder a plain name")
    for given in (ct, mask, clinical, radiomics):
        if isinstance(given, Path):
            if not given.exists():
                raise UsageError(f"{given} is not there", fix="correct the path")
            if given.resolve() == place or place in given.resolve().parents:
                raise UsageError(f"{given} lies in the case folder itself", fix="name another folder for the case")


def _read_ct(path: Path, series: str | None, fixes: Collection[str], repairs: list[Repair], case_id: str) -> ReadCt:
    """The CT, refused where its content is none; padding set to air where that was asked for."""
    if is_image_file(path):
        if series is not None:
            raise UsageError("--series is for DICOM", fix="leave it out: the file holds one volume")
        read = read_image_ct(path, case_id=case_id)
    else:
        from tmi.toolkit.ingest.dicom.ct import read_dicom_ct

        read = read_dicom_ct(path, series=series, fixes=fixes, case_id=case_id)
    repairs += read.repairs
    for code, what, fix in check_ct(read.volume):
        if code in NOT_CT_CODES:
            raise InputRejectedError(what.replace(CT_FILE, "the CT"), fix=fix, code=code, case_id=case_id)
    array: NDArray[Any] = read.volume.array_DHW
    below = array < PADDING_BELOW_HU
    if "ct-padding" in fixes and below.any():
        array[below] = -1024
        what = f"{int(below.sum())} voxels below {PADDING_BELOW_HU} HU set to -1024 HU"
        repairs.append(Repair(code="ct-padding", file=CT_FILE, what=what))
    return read


def write_volume(path: Path, volume: Volume) -> None:
    """A volume as NIfTI: voxels, affine, millimetres, and nothing else in the header."""
    array = volume.array_DHW
    image = nib.Nifti1Image(array.transpose(2, 1, 0).astype(np.uint8 if array.dtype == bool else array.dtype), None)
    image.set_sform(volume.affine_xyz, code=1)
    image.set_qform(volume.affine_xyz, code=1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def _clinical(given: Path | Mapping[str, Any], patient_id: str | None, case_id: str) -> dict[str, Any]:
    """The record's own keys. A key that a record does not have could hold anything, so it is refused, not copied."""
    mend = 'write {"patient_id": ..., "values": {field: value}, "report": text or null}'
    record: Any = given
    if isinstance(given, Path):
        try:
            record = json.loads(given.read_bytes()) if given.stat().st_size <= MAX_BYTES else None
        except (OSError, ValueError, RecursionError) as error:
            raise InputRejectedError(
                "the clinical record is not JSON", fix=mend, code="clinical-malformed", case_id=case_id
            ) from error
    if not isinstance(record, Mapping) or not set(record) <= set(KEYS) or not isinstance(record.get("values"), Mapping):
        raise InputRejectedError(
            f"the clinical record has other keys than {', '.join(KEYS)}, or no values",
            fix=mend, code="clinical-malformed", case_id=case_id,
        )  # fmt: skip
    own: dict[str, Any] = dict(record)
    if patient_id is not None:
        if own.get("patient_id") not in (None, patient_id):
            raise InputRejectedError(
                "the clinical record belongs to another patient than --patient-id says",
                fix="give the right patient's record", code="patient-mismatch", case_id=case_id,
            )  # fmt: skip
        own["patient_id"] = patient_id
    return own


def _names_another_patient(record: Mapping[str, Any], read: ReadCt | None) -> bool:
    named = record.get("patient_id")
    return bool(named and read is not None and read.patient_id and str(named).strip() != read.patient_id)


def days_between(blood_date: Any, ct_date: str | None) -> int | None:
    """Days from the blood sample (ISO date) to the CT (YYYYMMDD); None where either is not given or no date."""
    if not isinstance(blood_date, str) or not re.fullmatch(r"\d{8}", ct_date or ""):
        return None
    try:
        return (date.fromisoformat(ct_date or "") - date.fromisoformat(blood_date.strip()[:10])).days
    except ValueError:
        return None


def _digest(clinical: Path | Mapping[str, Any] | None) -> str:
    if isinstance(clinical, Path):
        return sha256_file(clinical)
    return sha256_bytes(json.dumps(dict(clinical or {}), sort_keys=True, default=str).encode())


def _is_pending(finding: Finding, case: Case) -> bool:
    if finding.code == "ct-missing":
        return not case.ct.exists()
    return finding.code in PENDING_CODES
