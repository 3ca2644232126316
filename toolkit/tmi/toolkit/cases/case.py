"""Case and cohort formats: the folder layout, and the only definition of the file names.

A case is a folder::

    P001/
      ct.nii.gz         CT volume in Hounsfield units
      liver.nii.gz      liver mask on the CT grid (optional if radiomics.csv exists)
      radiomics.csv     a header of feature names and one row of values (optional if the mask exists)
      radiomics.json    provenance of radiomics.csv (optional; `tmi.toolkit.radiomics.provenance`)
      clinical.json     {"patient_id": ..., "values": {field: value}, "report": free text or null}
      case.json         provenance and repairs of the case (optional; `tmi.toolkit.cases.provenance`)

A cohort is a folder of cases plus ``cohort.csv`` with the columns case_id, patient_id, label (good or bad).
"""

from __future__ import annotations

import csv
import errno
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tmi.toolkit.config.schema import CLASSES
from tmi.toolkit.errors import InputRejectedError, UsageError
from tmi.toolkit.storage.bounded_files import COHORT_BYTES, is_access_error, read_text
from tmi.toolkit.storage.csv_files import csv_dicts, find_delimiter, plain_text, unescape_cell
from tmi.toolkit.storage.table_formats import foreign_format
from tmi.toolkit.storage.terminal_text import is_unicode, printable

CT_FILE = "ct.nii.gz"
MASK_FILE = "liver.nii.gz"
RADIOMICS_FILE = "radiomics.csv"
RADIOMICS_RECORD_FILE = "radiomics.json"
CLINICAL_FILE = "clinical.json"
CASE_RECORD_FILE = "case.json"
COHORT_FILE = "cohort.csv"
TABLE_REPORT_FILE = "import-report.json"
"""Report that `tmi import --table` writes into a cohort."""
COHORT_COLUMNS = ("case_id", "patient_id", "label")


NAME_FAULT = (
    "the name of the case folder is not UTF-8",
    "rename the folder: its name becomes the case id; if the name is right, use a UTF-8 locale (LC_ALL=C.UTF-8)",
)
"""Message and fix of `case-name`."""
NO_SUCH_FOLDER = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP})
"""Error numbers of a path that leads to nothing."""
MaskLabel = int | tuple[int, ...]
"""Label of the liver in a mask, or several labels that are joined."""


def parse_mask_label(texts: Sequence[str | int] | None) -> MaskLabel | None:
    """Return the labels of `--mask-label`, given as numbers separated by commas, or by repeating the option.

    Raises:
        UsageError: an item is not an integer, or is 0.
    """
    parts = [part.strip() for text in texts or () for part in str(text).split(",")]
    if not all(p.isascii() and p.removeprefix("-").isdecimal() and len(p) <= 10 for p in parts):
        raise UsageError("a label of the mask is not an integer", fix="give numbers: --mask-label 5, or 1,2")
    numbers = tuple(dict.fromkeys(map(int, parts)))
    _require_foreground(numbers)
    return None if not numbers else numbers[0] if len(numbers) == 1 else numbers


def _require_foreground(numbers: tuple[int, ...]) -> None:
    if 0 in numbers:
        raise UsageError(
            "label 0 of a mask is what is not segmented, not the liver", fix="give the liver's label: --mask-label 1"
        )


def format_label(label: MaskLabel) -> str:
    """Return labels as `--mask-label` takes them."""
    return ",".join(map(str, label)) if isinstance(label, tuple) else str(label)


SYSTEM_ENTRIES = frozenset(
    {
        "__macosx", ".appledouble", ".ds_store", ".fseventsd", ".spotlight-v100", ".trashes", ".snapshot", "lost+found",
        "$recycle.bin", "recycler", "system volume information", "thumbs.db", "desktop.ini", "@eadir", "@recycle",
        "@recently-snapshot", "@tmp", "#recycle", "#snapshot", ".@__thumb",
    }
)  # fmt: skip
"""Names, in lower case, of what operating systems and file servers put into any folder."""
MAX_NAME_BYTES = 200
"""Longest case id in UTF-8; file systems allow 255 bytes, and names of results and staged folders are longer."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Paths of a case folder, and patient and label from its cohort table. No file is read.

    `mask_label` selects the voxels of one label of the mask file, or of several joined ones, of which the first must be
    present; None selects every non-zero voxel.
    """

    folder: Path
    case_id: str
    patient_id: str | None = None
    label: int | None = None
    mask_label: MaskLabel | None = None

    def __post_init__(self) -> None:
        if self.mask_label is not None:
            _require_foreground(self.mask_label if isinstance(self.mask_label, tuple) else (self.mask_label,))

    @property
    def ct(self) -> Path:
        """Path of the CT volume."""
        return self.folder / CT_FILE

    @property
    def mask(self) -> Path:
        """Path of the liver mask; the file is optional."""
        return self.folder / MASK_FILE

    @property
    def radiomics(self) -> Path:
        """Path of the radiomics table; the file is optional."""
        return self.folder / RADIOMICS_FILE

    @property
    def clinical(self) -> Path:
        """Path of the clinical record."""
        return self.folder / CLINICAL_FILE

    @property
    def has_mask(self) -> bool:
        """Whether the case has a liver mask."""
        return self.mask.exists()

    @property
    def has_radiomics(self) -> bool:
        """Whether the case has a radiomics table."""
        return self.radiomics.exists()

    @property
    def has_record(self) -> bool:
        """Whether the case has a clinical record."""
        return self.clinical.exists()


def open_case(folder: Path, *, mask_label: MaskLabel | None = None) -> Case:
    """Return the case of a folder; the name that the folder is given by is the case id (`given_name`).

    Raises:
        InputRejectedError: case-missing: the folder does not exist; case-unreadable: it cannot be opened; case-name:
            its name is not UTF-8.
    """
    case_id = given_name(folder)
    if not is_folder(folder):
        raise missing_case_error(folder, case_id, fix="give the path of a case folder")
    if not is_unicode(folder.name):
        what, fix = NAME_FAULT
        raise InputRejectedError(what, fix=fix, code="case-name", case_id=case_id)
    return Case(folder=folder, case_id=case_id, mask_label=mask_label)


def given_name(folder: Path) -> str:
    """Return the name by which a folder is given: a symbolic link has its own name, not that of its target.

    A link is often a pseudonym, and its target the name of a patient. `.` and `..` are resolved in the shell's working
    folder (`PWD`), which keeps the links by which it was entered, as `pwd -L` does. A name that is not UTF-8 is
    returned with escapes, because no document could hold it.
    """
    name = _given_name(folder)
    return name if is_unicode(name) else printable(name)


def _given_name(folder: Path) -> str:
    if folder.name not in ("", ".."):
        return folder.name
    given = Path(os.path.normpath(Path(os.environ.get("PWD", ""), folder)))
    try:
        # `normpath` cancels `link/..` without following the link: the result counts only if it is the same folder.
        if given.is_absolute() and given.samefile(folder):
            return given.name
    except (OSError, ValueError):  # PWD was removed, or is no path
        pass
    return folder.resolve().name


@contextmanager
def reading(case_id: str) -> Iterator[None]:
    """Reject the case if one of its files cannot be opened or read in the block.

    Raises:
        InputRejectedError: case-unreadable.
    """
    try:
        yield
    except OSError as error:
        raise InputRejectedError(
            f"its files cannot be read ({error.strerror or type(error).__name__})",
            fix="give the user read permission for the folder and its files, and check the disk",
            code="case-unreadable",
            case_id=case_id,
        ) from error


def unopened_error(path: Path, cause: BaseException) -> UsageError:
    """Return the error for a table, mapping or setting that exists, but cannot be opened or read."""
    return UsageError(
        f"{path} cannot be opened ({getattr(cause, 'strerror', None) or type(cause).__name__})",
        fix="give the user read permission for the file and its folder, or copy it to a local disk",
    )


def access_error(what: str, cause: BaseException, case_id: str | None) -> InputRejectedError:
    """Return the error for a file or folder that exists, but cannot be opened or read (`case-unreadable`)."""
    reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else type(cause).__name__
    return InputRejectedError(
        f"{what} cannot be opened ({reason})",
        fix="give the user read permission for the folder and its files, or copy them to a local disk",
        code="case-unreadable",
        case_id=case_id,
    )


def missing_case_error(folder: Path, case_id: str, *, fix: str) -> InputRejectedError:
    """Return the error for a case folder that does not exist, or that cannot be accessed (`case-unreadable`)."""
    try:
        folder.stat()
    except OSError as error:
        if is_access_error(error) and error.errno not in NO_SUCH_FOLDER:
            return access_error("the case folder", error, case_id)
    return InputRejectedError("the case folder does not exist", fix=fix, code="case-missing", case_id=case_id)


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder; False if it cannot be accessed, for example because the name is too long."""
    try:
        return path.is_dir()
    except OSError:
        return False


def is_cohort(path: Path) -> bool:
    """Return whether a folder holds a cohort table."""
    try:
        return (path / COHORT_FILE).exists()
    except OSError:  # no permission, or the name is too long: reported when the case is read
        return False


def is_system_entry(name: str) -> bool:
    """Return whether a file or folder belongs to an operating system or a file server, and not to a user.

    Examples are `__MACOSX`, `@eaDir`, `lost+found` and the resource forks of macOS (`._01.dcm`).
    """
    return name.startswith("._") or name.casefold() in SYSTEM_ENTRIES


def is_case(path: Path) -> bool:
    """Return whether a folder holds at least one file of a case."""
    try:
        return any((path / name).is_file() for name in (CT_FILE, MASK_FILE, RADIOMICS_FILE, CLINICAL_FILE))
    except OSError:
        return False


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Cohort folder with its cases in table order."""

    folder: Path
    cases: tuple[Case, ...]


def open_cohort(folder: Path, *, mask_label: MaskLabel | None = None) -> Cohort:
    """Read `cohort.csv`; case folders are not opened.

    Args:
        folder: the cohort.
        mask_label: label of the liver in the masks, or several that are joined; None: every voxel but 0.

    Raises:
        UsageError: the folder or its table is missing, or the table has wrong columns, duplicate ids or unknown labels.
    """
    table = folder / COHORT_FILE
    if not table.exists():
        what = f"{folder} is not a cohort: {COHORT_FILE} is missing"
        if (folder / TABLE_REPORT_FILE).exists():
            what = f"{folder} has no {COHORT_FILE}: `tmi import --table` wrote none"
            fix = "run it again with --resume, which prints the reason: no label, or lost rows (--accept-losses)"
            raise UsageError(what, fix=fix)
        raise UsageError(what, fix="give a cohort folder, or create one with `tmi synth OUT`")
    try:
        if (foreign := foreign_format(table)) is not None:
            raise UsageError(f"{table} is {foreign[0]}, which is not read", fix="save it as CSV in UTF-8")
        text = read_text(table, max_bytes=COHORT_BYTES)
        reader = csv_dicts(text, delimiter=find_delimiter(text, COHORT_COLUMNS))
        reader.fieldnames = [plain_text(name) for name in reader.fieldnames or ()]
        missing = [c for c in COHORT_COLUMNS if c not in (reader.fieldnames or ())]
        if missing:
            raise UsageError(
                f"{table}: column {missing[0]!r} is missing", fix=f"give the columns {', '.join(COHORT_COLUMNS)}"
            )
        rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        if is_access_error(error):
            raise unopened_error(table, error) from error
        reason = f": {error.strerror}" if isinstance(error, OSError) else ""
        raise UsageError(
            f"{table} cannot be read as CSV in UTF-8{reason}", fix="save it as comma-separated UTF-8"
        ) from error
    cases: list[Case] = []
    case_ids: set[str] = set()
    for line, row in enumerate(rows, start=2):
        if any("\n" in str(cell) for cell in row.values()):
            raise UsageError(
                f"{table} line {line}: a quotation mark is not closed", fix="remove the mark, or write it twice"
            )
        case_id, patient_id, label = (unescape_cell((row[c] or "").strip()) for c in COHORT_COLUMNS)
        if not patient_id.isprintable() or not patient_id or not is_portable_name(case_id):
            raise UsageError(
                f"{table} line {line}: case_id or patient_id is empty or not a plain name",
                fix="give both ids; the case id is the name of the case folder",
            )
        if case_id in case_ids:
            raise UsageError(
                f"{table} line {line}: case {case_id[:80]} is listed twice", fix="keep one of the two lines"
            )
        if label not in CLASSES:
            raise UsageError(f"{table} line {line}: label {label[:40]!r}", fix=f"write {' or '.join(CLASSES)}")
        case_ids.add(case_id)
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
        raise UsageError(f"{table} lists no case", fix="add one line per case")
    return Cohort(folder=folder, cases=tuple(cases))


def is_portable_name(name: str) -> bool:
    """Return whether a case id is printable and a valid folder name on every operating system."""
    return bool(name) and name.isprintable() and not set(name) & set("/\\") and name not in (".", "..")


def folder_key(name: str) -> str:
    """Return a text that two names have in common if they are one folder on some operating system.

    File systems ignore case, compose accents (NFC), or drop dots and spaces at the end.
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).rstrip(". ")


def is_too_long(name: str) -> bool:
    """Return whether a name has more than `MAX_NAME_BYTES`."""
    return len(name.encode(errors="replace")) > MAX_NAME_BYTES


def find_cases(paths: list[Path], *, mask_label: MaskLabel | None = None) -> list[Case]:
    """Return the cases of case folders, cohort folders and folders of cases, in the given order.

    A folder of cases without a cohort table is expanded to its sub-folders, sorted by name. Any other path is returned
    as a case, whether it exists or not; reading the case reports the error.

    Raises:
        UsageError: no path, a malformed cohort table, or two cases with the same id.
    """
    cases: list[Case] = []
    for path in paths:
        if is_cohort(path):
            cases.extend(open_cohort(path, mask_label=mask_label).cases)
        else:
            folders = _cases_below(path) or [path]
            cases.extend(Case(folder=f, case_id=given_name(f), mask_label=mask_label) for f in folders)
    duplicates = sorted(i for i, count in Counter(c.case_id for c in cases).items() if count > 1)
    if duplicates:
        raise UsageError(
            f"case id {duplicates[0][:80]} is given twice", fix="give cases of the same name to separate commands"
        )
    if not cases:
        raise UsageError("no case given", fix="give case folders or a cohort folder")
    return cases


def _cases_below(path: Path) -> list[Path]:
    """Return the direct sub-folders of a folder, sorted by name; empty unless at least one of them is a case.

    Sub-folders that are not cases are included, so that they are rejected instead of silently skipped. Hidden folders
    are unfinished imports; those and the folders of operating systems are left out. A folder that is a case itself has
    none.
    """
    if is_case(path):
        return []
    try:
        entries = [p for p in path.iterdir() if not p.name.startswith(".") and not is_system_entry(p.name)]
        folders = sorted(p for p in entries if p.is_dir())
    except OSError:
        return []
    return folders if any(map(is_case, folders)) else []
