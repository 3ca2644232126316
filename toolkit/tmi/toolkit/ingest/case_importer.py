"""Import of one case: writes a CT, a liver mask, a clinical record and radiomics into a de-identified case folder.

A wrong geometry, modality, grid or patient aborts the import before anything is written. Defects of the content (too
few slices, a mask outside the liver) do not abort it: the case is written, the checks of `tmi check` run on it, and
their findings are returned. Source files are opened read-only.

The case folder contains the voxels, the affine, the keys of the clinical record, the features by name, and
`case.json`. No source header is copied: NIfTI headers are built from scratch, and their text fields are empty.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.cases.case import (
    CLINICAL_FILE,
    CT_FILE,
    MASK_FILE,
    MAX_NAME_BYTES,
    RADIOMICS_FILE,
    Case,
    access_error,
    given_name,
    is_portable_name,
    is_too_long,
    open_case,
)
from tmi.toolkit.cases.provenance import CaseRecord, Repair, write_case_record
from tmi.toolkit.clinical.record import KEYS, iso_date
from tmi.toolkit.clinical.schema import Schema
from tmi.toolkit.errors import InputRejectedError, UsageError
from tmi.toolkit.imaging.volume import Volume
from tmi.toolkit.ingest.image_files import LoadedCt, is_image_file, read_image_ct, unknown_format_error
from tmi.toolkit.ingest.mask_labels import Wanted
from tmi.toolkit.issues.issue import Issue
from tmi.toolkit.qc.case_checks import check_case
from tmi.toolkit.qc.image_checks import check_ct
from tmi.toolkit.radiomics.table import read_table, write_table
from tmi.toolkit.storage.atomic_files import require_absent, staged_folder, write_json
from tmi.toolkit.storage.bounded_files import RECORD_BYTES, is_access_error
from tmi.toolkit.storage.documents import DocumentError, read_document
from tmi.toolkit.storage.hashing import sha256_bytes, sha256_file
from tmi.toolkit.storage.outputs import output_lock
from tmi.toolkit.storage.terminal_text import is_unicode

IMPORT_FIXES: Mapping[str, str] = MappingProxyType(
    {
        "dicom-duplicate-slice": "drop slices that are copies of another slice",
        "dicom-missing-slice": "interpolate gaps of one or two slices",
        "dicom-nonuniform-spacing": "resample along the slice normal to the median step",
        "dicom-gantry-tilt": "shear the slices onto a rectangular grid",
        "dicom-no-rescale": "interpret the stored values as HU",
        "ct-padding": "set padding to -1024 HU",
        "mask-grid": "resample the mask onto the CT's grid, nearest neighbour",
    }
)
"""Code -> what `--fix CODE` does during an import. A repair runs only if its code is requested."""
NOT_CT_CODES = frozenset({"ct-not-hu", "ct-8bit", "ct-rescaled", "ct-offset", "ct-spacing"})
"""Findings that abort the import because the volume is not a CT in HU."""
PENDING_CODES = frozenset({"clinical-missing", "radiomics-missing"})
"""Findings about files that were not given and can be added later."""
UNIT_FIX = "check the voxel sizes against the original; the case was written in millimetres"
PADDING_BELOW_HU = -1100
"""Voxels below this value are padding; the usual CT scale ends at -1024 HU."""


@dataclass(frozen=True, kw_only=True)
class ImportedCase:
    """Result of an import."""

    case: Case
    """Case folder that was written."""
    findings: tuple[Issue, ...]
    """Findings of the reader and of `tmi check`, errors included; empty for a case without defects."""
    missing: tuple[Issue, ...]
    """Findings about files that have to be added before the case can be used."""
    repairs: tuple[Repair, ...]
    """Repairs that were requested and applied."""
    source: Mapping[str, Any]
    """Description of the sources, as in `case.json`."""
    label: str | None
    """Mask label that was selected, and the rule that selected it; None without a mask."""

    def __repr__(self) -> str:
        state = "rejected" if self.rejected else "usable"
        return f"ImportedCase({str(self.case.folder)!r}, {state}, {len(self.findings)} findings)"

    @property
    def rejected(self) -> bool:
        """Whether training and prediction reject the case because of its content."""
        return any(f.severity == "error" for f in self.findings)


@dataclass(frozen=True, kw_only=True)
class _Sources:
    """Files of a case, and how they are read: the arguments of `import_case` of the same names."""

    ct: Path | None
    mask: Path | None
    series: str | None
    wanted: Wanted | None
    """`mask_label` or `roi`."""
    clinical: Path | Mapping[str, Any] | None
    radiomics: Path | None
    patient_id: str | None
    fixes: Collection[str]


def import_case(
    out: Path | str,
    *,
    ct: Path | str | None,
    mask: Path | str | None = None,
    series: str | None = None,
    mask_label: Wanted | None = None,
    roi: Wanted | None = None,
    clinical: Path | str | Mapping[str, Any] | None = None,
    radiomics: Path | str | None = None,
    patient_id: str | None = None,
    fixes: Collection[str] = (),
    schema: Schema | None = None,
    force: bool = False,
) -> ImportedCase:
    """Write one case folder atomically.

    Args:
        out: new case folder; its name becomes the case id.
        ct: folder of a DICOM series, or NIfTI, NRRD or MetaImage file; None writes a case without images.
        mask: NIfTI, NRRD, MetaImage, DICOM SEG or RTSTRUCT file.
        series: SeriesInstanceUID or number in the listing, if the folder holds several CT series.
        mask_label: label or segment, by number or name, or several to join (`"1,2"`, `[1, 2]`); None selects the liver
            (`choose_labels`).
        roi: same for the ROI of an RTSTRUCT; excludes `mask_label`.
        clinical: path of a `clinical.json`, or its content. A blood_date is replaced by its distance in days to the CT.
        radiomics: table of the features, by name.
        patient_id: patient that the clinical record must belong to; added to a record without a patient id.
        fixes: keys of `IMPORT_FIXES`.
        schema: clinical schema of the record, for the checks of the written case; None: the packaged one.
        force: replace an existing case.

    Raises:
        InputRejectedError: an input fails a check, whose code the error carries; nothing was written.
        UsageError: an unknown repair, both `mask_label` and `roi`, a mask without a CT, nothing to import, or `out`
            exists, cannot be written or is being written by another process.
        UnavailableError: the disk is full.
    """
    out = Path(out)
    if mask_label is not None and roi is not None:
        raise UsageError("both a mask label and a ROI are given", fix="give either --mask-label or --roi")
    sources = _Sources(
        ct=_as_path(ct),
        mask=_as_path(mask),
        series=series,
        wanted=mask_label if roi is None else roi,
        clinical=Path(clinical) if isinstance(clinical, str) else clinical,
        radiomics=_as_path(radiomics),
        patient_id=patient_id,
        fixes=fixes,
    )
    _validate_sources(out, sources)
    with output_lock(out, kind="case"):
        require_absent(out, force=force, kind="case")
        return _import_case(out, sources, schema)


def _as_path(path: Path | str | None) -> Path | None:
    return None if path is None else Path(path)


def _import_case(out: Path, given: _Sources, schema: Schema | None) -> ImportedCase:
    case_id = given_name(out)
    clinical, radiomics, fixes = given.clinical, given.radiomics, given.fixes
    record = None if clinical is None else _read_clinical(clinical, given.patient_id, case_id)
    features = None if radiomics is None else read_table(radiomics, case_id=case_id)
    findings: list[Issue] = []
    repairs: list[Repair] = []
    source: dict[str, Any] = {}
    ct_data = label = None
    with staged_folder(out) as stage:
        if given.ct is not None:
            ct_data = _read_ct(given.ct, given.series, fixes, repairs, case_id)
            findings += ct_data.findings
            source["ct"] = {**ct_data.source, "shape_DHW": list(ct_data.volume.array_DHW.shape)}
            write_volume(stage / CT_FILE, ct_data.volume)
            if given.mask is not None:
                from tmi.toolkit.ingest.mask_importer import import_mask

                imported = import_mask(given.mask, ct_data, wanted=given.wanted, fixes=fixes, case_id=case_id)
                write_volume(stage / MASK_FILE, imported.volume)
                findings += imported.findings
                repairs += imported.repairs
                source["mask"], label = dict(imported.source), imported.label.explanation
                if imported.label.named_otherwise:
                    source["mask"]["named_otherwise"] = True
        days = None
        if record is not None:
            blood_date = record.pop("blood_date", None)
            days = days_between(blood_date, None if ct_data is None else ct_data.date)
            findings += _check_dates(blood_date, days)
            if _patient_ids_differ(record, ct_data):
                message = "the patient id of the DICOM series differs from the patient id of the clinical record"
                fix = "check that both belong to one patient; separate pseudonymisation also causes this"
                findings.append(Issue.of("dicom-patient-id", message, fix))
            write_json(stage / CLINICAL_FILE, record)
            source["clinical"] = {"sha256": _digest(clinical)}
        if features is not None and radiomics is not None:
            write_table(stage / RADIOMICS_FILE, features)
            source["radiomics"] = {"sha256": sha256_file(radiomics), "axes": "unknown"}
        write_case_record(stage, CaseRecord(source=source, repairs=tuple(repairs), days_from_blood_to_ct=days))
    return _check_written_case(open_case(out), findings, tuple(repairs), source, label, schema)


def _check_written_case(
    case: Case,
    raw: list[Issue],
    repairs: tuple[Repair, ...],
    source: Mapping[str, Any],
    label: str | None,
    schema: Schema | None,
) -> ImportedCase:
    """Combine the findings of the reader with those of `tmi check` on the written case."""
    checked = check_case(case, schema=schema)
    found = {f.code for f in checked} & {"mask-gap"}  # an RTSTRUCT's reader and the check of the mask find the same
    findings = [issue.of_case(case.case_id) for issue in raw if issue.code not in found] + checked
    missing = tuple(f for f in findings if _is_pending(f, case))
    return ImportedCase(
        case=case,
        findings=tuple(f for f in findings if f not in missing),
        missing=missing,
        repairs=repairs,
        source=source,
        label=label,
    )


def _validate_sources(out: Path, given: _Sources) -> None:
    if unknown := sorted(set(given.fixes) - set(IMPORT_FIXES)):
        raise UsageError(f"unknown repair {unknown[0]!r}", fix=f"repairs of an import: {', '.join(IMPORT_FIXES)}")
    if given.mask is not None and given.ct is None:
        raise UsageError("a mask is given without its CT", fix="give the CT with --ct")
    if given.ct is None and given.clinical is None and given.radiomics is None:
        raise UsageError("nothing to import", fix="give --ct, --clinical or --radiomics")
    target = out.resolve()
    if not is_portable_name(given_name(out)):
        raise UsageError(
            "the name of the case folder contains characters that cannot be printed", fix="give it a plain name"
        )
    if is_too_long(given_name(out)):
        raise UsageError(
            f"the name of the case folder has more than {MAX_NAME_BYTES} bytes", fix="give it a shorter name"
        )
    for source in (given.ct, given.mask, given.clinical, given.radiomics):
        if isinstance(source, Path):
            if not source.exists():
                raise UsageError(f"{source} does not exist", fix="correct the path")
            # The case folder is replaced as a whole, so a source inside it would be deleted.
            if source.resolve() == target or target in source.resolve().parents:
                raise UsageError(f"{source} lies in the case folder itself", fix="name another folder for the case")


def _read_ct(path: Path, series: str | None, fixes: Collection[str], repairs: list[Repair], case_id: str) -> LoadedCt:
    """Read the CT, reject a volume that is not a CT in HU, and apply the repair `ct-padding` if requested."""
    if is_image_file(path):
        if series is not None:
            raise UsageError("--series applies to DICOM only", fix="omit --series: the file holds one volume")
        read = read_image_ct(path, case_id=case_id)
    else:
        from tmi.toolkit.ingest.dicom.ct import read_dicom_ct
        from tmi.toolkit.ingest.dicom.headers import is_dicom_file

        try:
            if path.is_file() and not is_dicom_file(path):
                raise unknown_format_error(path, kind="ct", case_id=case_id)
        except OSError as error:
            raise access_error("the CT file", error, case_id) from error
        read = read_dicom_ct(path, series=series, fixes=fixes, case_id=case_id)
    repairs += read.repairs
    found = [replace(issue, message=issue.message.replace(CT_FILE, "the CT")) for issue in check_ct(read.volume)]
    if rejected := [issue.of_case(case_id) for issue in found if issue.code in NOT_CT_CODES]:
        raise InputRejectedError.of(rejected)
    # the written file declares mm, so `tmi check` cannot find this again
    read = replace(read, findings=(*read.findings, *(replace(i, fix=UNIT_FIX) for i in found if i.code == "ct-unit")))
    array: NDArray[Any] = read.volume.array_DHW
    padding = array < PADDING_BELOW_HU
    if "ct-padding" in fixes and padding.any():
        array[padding] = -1024
        message = f"{int(padding.sum())} voxels below {PADDING_BELOW_HU} HU set to -1024 HU"
        repairs.append(Repair(code="ct-padding", file=CT_FILE, what=message))
    return read


def write_volume(path: Path, volume: Volume) -> None:
    """Write a volume as NIfTI. The header holds the data type, the affine (sform and qform) and the unit mm only."""
    array = volume.array_DHW
    image = nib.Nifti1Image(array.transpose(2, 1, 0).astype(np.uint8 if array.dtype == bool else array.dtype), None)
    image.set_sform(volume.affine_xyz, code=1)
    image.set_qform(volume.affine_xyz, code=1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def _read_clinical(source: Path | Mapping[str, Any], patient_id: str | None, case_id: str) -> dict[str, Any]:
    """Read the clinical record. An unknown key could hold identifying text, so the record is rejected, not copied."""
    fix = 'write {"patient_id": ..., "values": {field: value}, "report": text or null}'
    record: Any = source
    if isinstance(source, Path):
        try:
            record = read_document(source, max_bytes=RECORD_BYTES)
        except (OSError, DocumentError) as error:
            if is_access_error(error):
                raise access_error("the clinical record", error, case_id) from error
            reason = error.reason if isinstance(error, DocumentError) else f"cannot be read: {error.strerror}"
            raise InputRejectedError(
                f"the clinical record {reason}", fix=fix, code="clinical-malformed", case_id=case_id
            ) from error
    if not isinstance(record, Mapping) or not set(record) <= set(KEYS) or not isinstance(record.get("values"), Mapping):
        raise InputRejectedError(
            f"the clinical record has other keys than {', '.join(KEYS)}, or no values",
            fix=fix, code="clinical-malformed", case_id=case_id,
        )  # fmt: skip
    if not is_unicode(json.dumps(dict(record), ensure_ascii=False, default=str) + (patient_id or "")):
        raise InputRejectedError(
            "the clinical record contains half of a surrogate pair, which is no character",
            fix="write the text again as UTF-8", code="clinical-malformed", case_id=case_id,
        )  # fmt: skip
    copy: dict[str, Any] = dict(record)
    if patient_id is not None:
        if copy.get("patient_id") not in (None, patient_id):
            raise InputRejectedError(
                "the patient id of the clinical record differs from --patient-id",
                fix="give the record of this patient", code="patient-mismatch", case_id=case_id,
            )  # fmt: skip
        copy["patient_id"] = patient_id
    return copy


def _patient_ids_differ(record: Mapping[str, Any], ct: LoadedCt | None) -> bool:
    patient_id = record.get("patient_id")
    return bool(patient_id and ct is not None and ct.patient_id and str(patient_id).strip() != ct.patient_id)


def days_between(blood_date: Any, ct_date: str | None) -> int | None:
    """Return the days from the blood sample (ISO date) to the CT (YYYYMMDD); None if a date is missing or invalid."""
    if not isinstance(blood_date, str) or not re.fullmatch(r"\d{8}", ct_date or ""):
        return None
    blood, ct = iso_date(blood_date), iso_date(ct_date or "")
    return None if blood is None or ct is None else (ct - blood).days


def _check_dates(blood_date: Any, days: int | None) -> list[Issue]:
    """Return a finding if a blood date is dropped without its distance to the CT being known."""
    if blood_date is None or days is not None:
        return []
    if not isinstance(blood_date, str) or iso_date(blood_date) is None:
        reason, fix = "it is no date", "write it as YYYY-MM-DD, or omit it"
    else:
        reason = "the date of the CT is unknown"
        fix = "give both dates to `tmi import --table` (ct_date), or omit the blood date"
    return [Issue.of("clinical-date", f"the blood date of the clinical record was dropped: {reason}", fix)]


def _digest(clinical: Path | Mapping[str, Any] | None) -> str:
    if isinstance(clinical, Path):
        return sha256_file(clinical)
    return sha256_bytes(json.dumps(dict(clinical or {}), sort_keys=True, default=str).encode())


def _is_pending(finding: Issue, case: Case) -> bool:
    if finding.code == "ct-missing":
        return not case.ct.exists()
    return finding.code in PENDING_CODES
