"""Invalid cases: each is a copy of a valid case with one fault, and prediction must reject it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import nibabel as nib
import numpy as np


@dataclass(frozen=True)
class Fault:
    """One fault of a case."""

    corrupt: Callable[[Path], None]
    """Plants the fault in a case folder."""
    code: str
    """Code of the rejection."""
    message: str
    """Text that the message must contain."""


def _truncate(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def _rewrite(file: Path, array: np.ndarray, affine: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(array, affine), file)


def _shift_mask(folder: Path) -> None:
    image = nib.load(folder / "liver.nii.gz")
    affine = image.affine.copy()
    affine[0, 3] += 25.0
    _rewrite(folder / "liver.nii.gz", np.asarray(image.dataobj), affine)


def _crop_mask(folder: Path) -> None:
    image = nib.load(folder / "liver.nii.gz")
    _rewrite(folder / "liver.nii.gz", np.asarray(image.dataobj)[:, :, :-2], image.affine)


def _empty_mask(folder: Path) -> None:
    image = nib.load(folder / "liver.nii.gz")
    _rewrite(folder / "liver.nii.gz", np.zeros_like(np.asarray(image.dataobj)), image.affine)


def _nan_volume(folder: Path) -> None:
    image = nib.load(folder / "ct.nii.gz")
    array = np.asarray(image.dataobj, dtype=np.float32)
    array[array.shape[0] // 2, array.shape[1] // 2, array.shape[2] // 2] = np.nan
    _rewrite(folder / "ct.nii.gz", array, image.affine)


def _drop_a_column(folder: Path) -> None:
    header, row = (folder / "radiomics.csv").read_text().splitlines()[:2]
    (folder / "radiomics.csv").write_text(f"{header.rpartition(',')[0]}\n{row.rpartition(',')[0]}\n")


def _unknown_field(folder: Path) -> None:
    record = json.loads((folder / "clinical.json").read_text())
    record["values"]["blood_of_dragons"] = 7
    (folder / "clinical.json").write_text(json.dumps(record))


FAULTS: Mapping[str, Fault] = MappingProxyType(
    {
        "no_ct": Fault(lambda f: (f / "ct.nii.gz").unlink(), "ct-missing", "ct.nii.gz"),
        "no_record": Fault(lambda f: (f / "clinical.json").unlink(), "clinical-missing", "clinical.json"),
        "no_mask_no_table": Fault(
            lambda f: [(f / n).unlink() for n in ("liver.nii.gz", "radiomics.csv")] and None,
            "radiomics-missing",
            "radiomics",
        ),
        "truncated_ct": Fault(lambda f: _truncate(f / "ct.nii.gz"), "ct-unreadable", "ct.nii.gz"),
        "truncated_mask": Fault(lambda f: _truncate(f / "liver.nii.gz"), "mask-unreadable", "liver.nii.gz"),
        "shifted_mask": Fault(_shift_mask, "mask-grid", "liver.nii.gz"),
        "cropped_mask": Fault(_crop_mask, "mask-grid", "liver.nii.gz"),
        "empty_mask": Fault(_empty_mask, "mask-empty", "liver.nii.gz"),
        "nan_volume": Fault(_nan_volume, "ct-nan", "ct.nii.gz"),
        "table_of_1780": Fault(_drop_a_column, "radiomics-columns", "radiomics.csv"),
        "unknown_field": Fault(_unknown_field, "clinical-unknown-field", "blood_of_dragons"),
        "malformed_json": Fault(lambda f: _truncate(f / "clinical.json"), "clinical-malformed", "clinical.json"),
    }
)
"""Case id -> fault."""


def write_bad_cases(folder: Path, good_case: Path) -> list[Path]:
    """Write one copy of the valid case for each fault, and return the folders in the order of `FAULTS`."""
    paths = []
    for name, fault in FAULTS.items():
        copy = Path(shutil.copytree(good_case, folder / name))
        fault.corrupt(copy)
        paths.append(copy)
    return paths
