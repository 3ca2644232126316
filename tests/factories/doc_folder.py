"""The files and folders that the pages name, small: `MAKERS` has a function for each name."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from factories.cases import write_case, write_cohort
from factories.paths import ROOT

MAPPING = """
schema: tmi-mapping/1
case_id: {column: id, prefix: K}
fields:
  sex: {column: sex, values: {f: female, m: male}}
  albumin: {column: alb, unit: g/dL}
  total_bilirubin: {column: bili, unit: mg/dL}
label: {column: outcome, values: {dead: bad, alive: good}, otherwise: outcome is not known}
images: {ct: CT, mask: mask}
"""
ROWS = 16
"""Rows of the spreadsheet."""


@dataclass(frozen=True)
class DocFiles:
    """Where the larger files come from."""

    run: Path
    """A finished run of the smallest network."""
    bundle: Path
    """Its bundle."""
    shared_data: Path | None
    """Folder of real images and tables; None for a page that needs none."""


def _case(target: Path, files: DocFiles) -> None:
    write_case(target, seed=len(target.name))


def _cohort(target: Path, files: DocFiles) -> None:
    write_cohort(target, cases=12)


def _cohort_without_tables(target: Path, files: DocFiles) -> None:
    write_cohort(target, cases=2, with_radiomics=False)


def _cases(target: Path, files: DocFiles) -> None:
    for name in ("H1", "H2"):
        write_case(target / name)


def _case_with_label_5(target: Path, files: DocFiles) -> None:
    write_case(target, with_radiomics=False)
    mask = nib.load(target / "liver.nii.gz")
    voxels = np.asarray(mask.dataobj).astype(np.uint8) * 5
    voxels[0, 0, 0] = 1
    nib.save(nib.Nifti1Image(voxels, mask.affine), target / "liver.nii.gz")


def _run(target: Path, files: DocFiles) -> None:
    shutil.copytree(files.run, target)


def _ct_only_run(target: Path, files: DocFiles) -> None:
    from factories.random_run import with_modalities

    with_modalities(files.run, target, ("image",))


def _bundle(target: Path, files: DocFiles) -> None:
    shutil.copytree(files.bundle, target)


def _series(target: Path, files: DocFiles) -> None:
    from factories.dicom_series import write_series

    write_series(target)


def _seg(target: Path, files: DocFiles) -> None:
    from factories.dicom_series import SeriesSpec, liver_masks, make_slices, write_seg

    write_seg(target, make_slices(), [liver_masks(SeriesSpec())], ["hepar"])


def _two_series(target: Path, files: DocFiles) -> None:
    from factories.dicom_series import SeriesSpec, make_slices, write_slices

    write_slices(target, make_slices(), prefix="A")
    write_slices(target, make_slices(SeriesSpec(slices=20, series_number=4), seed=1), prefix="B")


def _tilted_series(target: Path, files: DocFiles) -> None:
    from factories.dicom_series import SeriesSpec, write_series

    write_series(target, SeriesSpec(tilt_deg=12.0))


def _ct(target: Path, files: DocFiles) -> None:
    case = write_case(target.parent / "made")
    shutil.move(case / "ct.nii.gz", target)
    shutil.rmtree(case)


def _labels(target: Path, files: DocFiles) -> None:
    case = write_case(target.parent / "made")
    mask = nib.load(case / "liver.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(mask.dataobj).astype(np.uint8) * 5, mask.affine), target)  # 5: liver
    shutil.rmtree(case)


def _record(target: Path, files: DocFiles) -> None:
    target.write_text(json.dumps({"patient_id": "P001", "values": {"sex": "female", "albumin": 38}, "report": None}))


def _table(target: Path, files: DocFiles) -> None:
    """A workbook with a CT and a mask in each row."""
    import openpyxl

    book = openpyxl.Workbook()
    book.active.append(("id", "sex", "alb", "bili", "outcome", "CT", "mask"))
    for row in range(ROWS):
        write_case(target.parent / "images" / f"{row}", seed=row, with_radiomics=False)
        images = (f"images/{row}/{case_file}" for case_file in ("ct.nii.gz", "liver.nii.gz"))
        book.active.append((row, "fm"[row % 2], 3.5 + row / 10, 0.8, ("alive", "dead")[row // 2 % 2], *images))
    book.save(target)


def _mapping(target: Path, files: DocFiles) -> None:
    target.write_text(MAPPING)


def _schema(target: Path, files: DocFiles) -> None:
    shutil.copy(ROOT / "docs" / "examples" / "pbc-schema.json", target)


def _features(target: Path, files: DocFiles) -> None:
    """Table of another program, one of whose names differs."""
    from tmi.toolkit.radiomics.feature_names import FEATURE_NAMES

    names = ["glcm_contrast_original" if name == "original_glcm_Contrast" else name for name in FEATURE_NAMES]
    with target.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["case_id", *names])
        for case in ("C000", "C001"):
            writer.writerow([case, *(f"{n + 0.5}" for n in range(len(names)))])


def _names(target: Path, files: DocFiles) -> None:
    target.write_text("glcm_contrast_original: original_glcm_Contrast\n")


def _real_data(target: Path, files: DocFiles) -> None:
    target.symlink_to(files.shared_data)


def _trial(target: Path, files: DocFiles) -> None:
    shutil.copy(files.shared_data / "mayo-pbc" / "pbc.csv", target)


def _docs(target: Path, files: DocFiles) -> None:
    target.symlink_to(ROOT / "docs")


MAKERS: Mapping[str, Callable[[Path, DocFiles], None]] = {
    **dict.fromkeys(("case_a", "case_b", "CASE"), _case),
    "cohort": _cohort,
    "untabled": _cohort_without_tables,
    "external": _cohort_without_tables,
    "held-out": _cases,
    "labels/P001": _case_with_label_5,
    **dict.fromkeys(("RUN", "runs/first"), _run),
    "runs/ct-only": _ct_only_run,
    **dict.fromkeys(("BUNDLE", "bundle"), _bundle),
    "dicom": _series,
    **dict.fromkeys(("seg.dcm", "liver.dcm"), _seg),
    "pacs": _two_series,
    "tilted": _tilted_series,
    "ct.nii.gz": _ct,
    "total.nii.gz": _labels,
    **dict.fromkeys(("record.json", "P001.json"), _record),
    **dict.fromkeys(("patients.xlsx", "cohort.xlsx"), _table),
    "mapping.yaml": _mapping,
    "pbc.json": _schema,
    "features.csv": _features,
    "names.yaml": _names,
    "data": _real_data,
    "pbc.csv": _trial,
    "docs": _docs,
}
"""Name in a page -> function that makes it."""
REAL = ("data", "pbc.csv")
"""Names that need the folder of real images and tables."""


def write_doc_folder(folder: Path, names: tuple[str, ...], files: DocFiles) -> Path:
    """Make what a page needs."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        MAKERS[name](folder / name, files)
    return folder
