"""The case and cohort formats: which files, in which folder, under which names. Nothing else knows a file name.

A case is a folder::

    P001/
      ct.nii.gz         CT volume in Hounsfield units
      liver.nii.gz      mask on the CT's grid (optional where radiomics.csv is there)
      radiomics.csv     a header of feature names and one row of values (optional where the mask is there)
      radiomics.json    what radiomics.csv was made from (optional; `tmi.toolkit.radiomics.provenance`)
      clinical.json     {"patient_id": ..., "values": {field: value}, "report": free text or null}
      case.json         where it came from and what was repaired (optional; `tmi.toolkit.cases.provenance`)

A cohort is a folder of cases plus ``cohort.csv`` with the columns case_id, patient_id, label (good or bad).
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from tmi.toolkit.config.schema import CLASSES
from tmi.toolkit.errors import InputRejectedError, UsageError

CT_FILE = "ct.nii.gz"
MASK_FILE = "liver.nii.gz"
RADIOMICS_FILE = "radiomics.csv"
RADIOMICS_RECORD_FILE = "radiomics.json"
CLINICAL_FILE = "clinical.json"
CASE_RECORD_FILE = "case.json"
COHORT_FILE = "cohort.csv"
COHORT_COLUMNS = ("case_id", "patient_id", "label")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case folder and what its cohort says of it. Holds paths only; nothing is read yet.

    `mask_label` selects the voxels of the mask file; None takes every non-zero voxel.
    """

    folder: Path
    case_id: str
    patient_id: str | None = None
    label: int | None = None
    mask_label: int | None = None

    @property
    def ct(self) -> Path:
        """The CT volume."""
        return self.folder / CT_FILE

    @property
    def mask(self) -> Path:
        """The liver mask; may be absent."""
        return self.folder / MASK_FILE

    @property
    def radiomics(self) -> Path:
        """The radiomics table; may be absent."""
        return self.folder / RADIOMICS_FILE

    @property
    def clinical(self) -> Path:
        """The clinical record."""
        return self.folder / CLINICAL_FILE


def open_case(folder: Path, *, mask_label: int | None = None) -> Case:
    """A case from its folder; the folder's name is the case id.

    Raises:
        InputRejectedError: no such folder.
    """
    case_id = folder.resolve().name
    if not is_folder(folder):
        raise InputRejectedError(
            "the case folder is not there", fix="give the path of a case folder", code="case-missing", case_id=case_id
        )
    return Case(folder=folder, case_id=case_id, mask_label=mask_label)


def is_folder(path: Path) -> bool:
    """Whether a folder is there; a path that cannot be looked at, such as too long a name, is none."""
    try:
        return path.is_dir()
    except OSError:
        return False


def is_cohort(path: Path) -> bool:
    """Whether a folder holds a cohort table."""
    try:
        return (path / COHORT_FILE).is_file()
    except OSError:  # a folder that may not be looked into, a name that is too long: told by whatever reads the case
        return False


def is_case(path: Path) -> bool:
    """Whether a folder holds a file that only a case holds."""
    try:
        return any((path / name).is_file() for name in (CT_FILE, MASK_FILE, RADIOMICS_FILE, CLINICAL_FILE))
    except OSError:
        return False


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """A cohort folder: its cases in the order of the table."""

    folder: Path
    cases: tuple[Case, ...]


def open_cohort(folder: Path, *, mask_label: int | None = None) -> Cohort:
    """Read `cohort.csv`; case folders are not opened.

    Raises:
        UsageError: the folder or its table is missing or malformed: wrong columns, duplicate ids, unknown labels.
    """
    table = folder / COHORT_FILE
    if not table.is_file():
        raise UsageError(
            f"{folder} is no cohort: {COHORT_FILE} is missing",
            fix="give a cohort folder, or make one with `tmi synth OUT`",
        )
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            missing = [c for c in COHORT_COLUMNS if c not in (reader.fieldnames or ())]
            if missing:
                raise UsageError(
                    f"{table}: column {missing[0]!r} is missing", fix=f"give the columns {', '.join(COHORT_COLUMNS)}"
                )
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{table} cannot be read as CSV in UTF-8", fix="save it as comma-separated UTF-8") from error
    cases: list[Case] = []
    seen: set[str] = set()
    for line, row in enumerate(rows, start=2):
        case_id, patient_id, label = ((row[c] or "").strip() for c in COHORT_COLUMNS)
        if not patient_id.isprintable() or not patient_id or not is_portable_name(case_id):
            raise UsageError(
                f"{table} line {line}: case_id or patient_id is empty or no plain name",
                fix="give both ids; the case id is the name of the case's folder",
            )
        if case_id in seen:
            raise UsageError(f"{table} line {line}: case {case_id} is listed twice", fix="keep one of the two lines")
        if label not in CLASSES:
            raise UsageError(f"{table} line {line}: label {label!r}", fix=f"write {' or '.join(CLASSES)}")
        seen.add(case_id)
        cases.append(
            Case(
                folder=folder / case_id,
                case_id=case_id,
                patient_id=patient_id,
                label=CLASSES.index(label),
                mask_label=mask_label,
            )
        )
    if not cases:
        raise UsageError(f"{table} lists no case", fix="add a line a case")
    return Cohort(folder=folder, cases=tuple(cases))


def is_portable_name(name: str) -> bool:
    """Whether a case id can be a folder's name on every system and be printed."""
    return bool(name) and name.isprintable() and not set(name) & set("/\\") and name not in (".", "..")


def find_cases(paths: list[Path], *, mask_label: int | None = None) -> list[Case]:
    """Cases from a mix of case folders, cohort folders and folders of cases, in the order given.

    A folder of cases without a cohort table stands for all of them, by name. Any other path is taken as a case; whether
    it is there is found when it is read.

    Raises:
        UsageError: no path, a malformed cohort table, or two cases with one id.
    """
    cases: list[Case] = []
    for path in paths:
        if is_cohort(path):
            cases.extend(open_cohort(path, mask_label=mask_label).cases)
        else:
            folders = _cases_below(path) or [path]
            cases.extend(Case(folder=f, case_id=f.resolve().name, mask_label=mask_label) for f in folders)
    ids = [c.case_id for c in cases]
    twice = sorted({i for i in ids if ids.count(i) > 1})
    if twice:
        raise UsageError(f"case id {twice[0]} is given twice", fix="give cases of the same name to separate commands")
    if not cases:
        raise UsageError("no case given", fix="give case folders or a cohort folder")
    return cases


def _cases_below(path: Path) -> list[Path]:
    """Every folder right below one that is no case itself, by name, where at least one of them is a case.

    None of them is passed over silently: what is no case is refused as one. Hidden folders are unfinished imports.
    """
    if is_case(path):
        return []
    try:
        below = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError:
        return []
    return below if any(map(is_case, below)) else []
