"""A case whose files are each read once, so that all its users see the same bytes.

    case = load_case("cohort/P001")
    (result,) = predictor.predict(case)
    findings = check_case(case)

A file is read when it is first needed. What its reader returned or raised then is returned or raised to every later
user: the prediction, the checks and the explanation of a case belong to one input even if a file is replaced
meanwhile. The CT is decoded while it is resampled, as without a loaded case; its voxels are kept, its compressed bytes
are not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from tmi.toolkit.cases.case import CLINICAL_FILE, MASK_FILE, RADIOMICS_FILE, Case, MaskLabel, open_case
from tmi.toolkit.errors import TmiError
from tmi.toolkit.storage.bounded_files import IMAGE_BYTES, read_bytes, require_size
from tmi.toolkit.storage.hashing import sha256_bytes

Part = TypeVar("Part")
"""What a reader of a case returns."""
REPEATED = (TmiError, OSError)
"""Errors of a file, which every user of a loaded case gets."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedCase(Case):
    """A case folder whose files are each read at most once; several threads may read it.

    `load_case` makes one. Once they were needed, it holds the voxels of its CT and its mask.
    """

    _parts: dict[str, Future[Any]] = field(default_factory=dict, init=False, repr=False)
    _digests: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    _lock: Any = field(default_factory=Lock, init=False, repr=False)

    def once(self, part: str, read: Callable[[], Part]) -> Part:
        """Return what `read` returns, or raise what it raises, at the first call for this part; later calls repeat it.

        Args:
            part: name of the part: a file, or what is made of it.
            read: reads the part; other threads that ask for it wait meanwhile.
        """
        with self._lock:
            known = self._parts.get(part)
            future: Future[Any] = self._parts.setdefault(part, Future())
        if known is None:
            return self._read(part, future, read)
        error = future.exception()
        if isinstance(error, REPEATED):
            # A copy: an error holds the frames that it was raised through, and so the case and its voxels.
            raise copy.copy(error)
        result: Part = future.result()
        return result

    def _read(self, part: str, future: Future[Any], read: Callable[[], Part]) -> Part:
        try:
            result = read()
        except REPEATED as error:  # every later user gets the same error
            future.set_exception(copy.copy(error))
            raise
        except BaseException as error:  # a fault of the program or of the machine: the next user tries again
            self.release(part)
            future.set_exception(error)  # for those who wait already
            raise
        future.set_result(result)
        return result

    def content(self, name: str, *, max_bytes: int) -> bytes:
        """Bytes of one of its files, which are kept until `release`.

        Raises:
            OSError: it cannot be read, is no regular file, or is larger than `max_bytes`.
        """

        def read() -> bytes:
            data = read_bytes(self.folder / name, max_bytes=max_bytes)
            self._digests[name] = sha256_bytes(data)
            return data

        data = self.once(name, read)
        require_size(len(data), self.folder / name, max_bytes=max_bytes)  # who read it first may have allowed more
        return data

    def release(self, name: str) -> None:
        """Drop a part, such as the bytes of a file that was decoded; digests are kept."""
        with self._lock:
            self._parts.pop(name, None)

    def digest(self, name: str) -> str:
        """SHA-256 of the bytes of a file that its other users get.

        Raises:
            OSError: as in `content`.
        """
        if name not in self._digests:
            self.content(name, max_bytes=IMAGE_BYTES)
        return self._digests[name]

    def has(self, name: str) -> bool:
        """Whether it had a file of this name at the first question."""
        return self.once(f"has {name}", (self.folder / name).exists)

    @property
    def has_mask(self) -> bool:
        """Whether the case has a liver mask."""
        return self.has(MASK_FILE)

    @property
    def has_radiomics(self) -> bool:
        """Whether the case has a radiomics table."""
        return self.has(RADIOMICS_FILE)

    @property
    def has_record(self) -> bool:
        """Whether the case has a clinical record."""
        return self.has(CLINICAL_FILE)


def load_case(case: Case | Path | str, *, mask_label: MaskLabel | None = None) -> Case:
    """Return a case whose files are each read once, at their first use.

    Args:
        case: a case folder or a `Case`; one that is loaded or in memory (`CaseArrays`) is returned as it is.
        mask_label: label of the liver in the mask, or several that are joined; a `Case` has its own.

    Raises:
        InputRejectedError: `case-missing`, `case-unreadable`, `case-name`: the folder cannot be opened.
    """
    if not isinstance(case, Case):
        case = open_case(Path(case), mask_label=mask_label)
    if type(case) is not Case:
        return case
    return LoadedCase(
        folder=case.folder,
        case_id=case.case_id,
        patient_id=case.patient_id,
        label=case.label,
        mask_label=case.mask_label,
    )


def case_bytes(case: Case, name: str, *, max_bytes: int) -> bytes:
    """Bytes of a document of a case, read once if the case is loaded.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger than `max_bytes`.
    """
    if isinstance(case, LoadedCase):
        return case.content(name, max_bytes=max_bytes)
    return read_bytes(case.folder / name, max_bytes=max_bytes)


def has_file(case: Case, name: str) -> bool:
    """Whether a case has a file of this name."""
    return case.has(name) if isinstance(case, LoadedCase) else (case.folder / name).exists()
