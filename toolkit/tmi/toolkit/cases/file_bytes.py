"""A case whose files are bytes in memory, as a service receives them; nothing of it is written to a disk.

    case = CaseBytes(case_id="P001", files={"ct.nii.gz": ct, "liver.nii.gz": liver, "clinical.json": record})
    (result,) = predictor.predict(case)

The files are those of a case folder. They are read by the same readers, pass the same checks and give the same result.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tmi.toolkit.cases.arrays import IN_MEMORY
from tmi.toolkit.cases.loaded import LoadedCase
from tmi.toolkit.storage.bounded_files import require_size
from tmi.toolkit.storage.hashing import sha256_bytes

Part = TypeVar("Part")
"""What a reader of a case returns."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseBytes(LoadedCase):
    """The files of one case as bytes.

    Args:
        case_id: id of the case in results and messages.
        files: file name of a case folder -> its bytes, which must not change.
        patient_id: id of the patient, which is compared with the record's; None compares nothing.
        label: index of the outcome's class; predictions do not use it.
        mask_label: label of the liver in the mask, or several that are joined; None: every voxel that is not 0.
    """

    folder: Path = field(default=IN_MEMORY, init=False, repr=False)
    """A case in memory has no folder."""
    files: Mapping[str, bytes] = field(repr=False)
    """File name -> bytes."""

    def once(self, part: str, read: Callable[[], Part]) -> Part:
        """Read a part at every call: the bytes cannot change, and decoded voxels would only take memory."""
        return read()

    def content(self, name: str, *, max_bytes: int) -> bytes:
        """Bytes of one of its files.

        Raises:
            OSError: there is no such file, or it is larger than `max_bytes`.
        """
        if name not in self.files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        require_size(len(self.files[name]), self.folder / name, max_bytes=max_bytes)
        return self.files[name]

    def release(self, name: str) -> None:
        """Keep the bytes: they belong to the caller."""

    def digest(self, name: str) -> str:
        """SHA-256 of the bytes of a file.

        Raises:
            KeyError: there is no such file.
        """
        return sha256_bytes(self.files[name])

    def has(self, name: str) -> bool:
        """Whether it has a file of this name."""
        return name in self.files
