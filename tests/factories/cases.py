"""Small valid cases, written in milliseconds: a CT with a liver, its mask, radiomics and a clinical record."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np

from tmi.toolkit.radiomics.feature_names import FEATURE_NAMES
from tmi.toolkit.radiomics.table import write_table

AFFINE = np.diag([6.0, 7.0, 9.0, 1.0]) + np.array([[0, 0, 0, -70.0], [0, 0, 0, -70.0], [0, 0, 0, -60.0], [0, 0, 0, 0]])

MARKUP_CASE_ID = 'P2 <b onmouseover="alert(1)">&'
"""Case id that is HTML markup unless it is escaped."""


def write_case(
    folder: Path,
    *,
    seed: int = 0,
    shape_xyz: tuple[int, int, int] = (32, 28, 24),
    affine: np.ndarray = AFFINE,
    with_mask: bool = True,
    with_radiomics: bool = True,
    patient_id: str | None = None,
) -> Path:
    """Write a case that passes every check; the same seed gives the same voxels and values."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape_xyz), indexing="ij")
    body = (x / 0.9) ** 2 + (y / 0.8) ** 2 < 1
    # the affine is RAS+, so +x is the patient's right: the liver lies there, in the upper half
    liver = ((x - 0.35) / 0.42) ** 2 + (y / 0.5) ** 2 + ((z - 0.1) / 0.62) ** 2 < 1
    hu = np.full(shape_xyz, -1000.0)
    hu[body] = 40.0
    hu[liver] = 105.0
    hu += random.normal(0, 8.0, shape_xyz)
    nib.save(nib.Nifti1Image(np.round(hu).clip(-1024, 3000).astype(np.int16), affine), folder / "ct.nii.gz")
    if with_mask:
        nib.save(nib.Nifti1Image(liver.astype(np.uint8), affine), folder / "liver.nii.gz")
    if with_radiomics:
        write_table(folder / "radiomics.csv", random.normal(0, 10.0, len(FEATURE_NAMES)))
    values = {
        "sex": "female" if seed % 2 else "male",
        "height": 160 + seed % 20,
        "bmi": round(float(random.uniform(19, 30)), 1),
        "albumin": round(float(random.uniform(30, 50)), 1),
        "total_bilirubin": round(float(random.uniform(5, 40)), 1),
        "platelets": round(float(random.uniform(80, 300))),
        "ggt": None,
    }
    record = {"patient_id": patient_id or f"patient-{folder.name}", "values": values, "report": None}
    (folder / "clinical.json").write_text(json.dumps(record))
    return folder


def write_cohort(folder: Path, *, cases: int, seed: int = 0, **options: object) -> Path:
    """Write a cohort of small valid cases with alternating labels and one patient per case."""
    rows = ["case_id,patient_id,label"]
    for i in range(cases):
        name = f"C{i:03d}"
        write_case(folder / name, seed=seed * 1000 + i, patient_id=f"P{i:03d}", **options)  # type: ignore[arg-type]
        rows.append(f"{name},P{i:03d},{'bad' if i % 2 else 'good'}")
    (folder / "cohort.csv").write_text("\n".join(rows) + "\n")
    return folder
