"""A valid cohort of two phantom cases, into which faults are planted."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np

from factories.cases import write_case
from tmi.toolkit.synthetic.phantom import Body, DiseaseSigns, Grid, Phantom, render

GRID = Grid(shape_XYZ=(64, 56, 32), spacing_XYZ_mm=(4.8, 4.8, 6.8), noise_hu=10.0, deposit_part=0.015)
BODY = Body(half_width_mm=140.0, half_depth_mm=100.0, fat_mm=10.0, muscle_mm=10.0, liver_scale=1.0, spleen_scale=1.0,
            enhancement_hu=0.0)  # fmt: skip
FINDINGS = DiseaseSigns(liver_hu=98.0, nodule_mm=3.0, texture_hu=7.0, liver_shrink=1.0, spleen_growth=1.12,
                        varix_mm=0.0, ascites_mm=0.0, deposit_hu=140.0)  # fmt: skip
AFFINE = np.diag([*GRID.spacing_XYZ_mm, 1.0])
AFFINE[:3, 3] = -np.array(GRID.spacing_XYZ_mm) * np.array(GRID.shape_XYZ) / 2
CASES = ("C0", "C1")


@cache
def phantom(seed: int) -> Phantom:
    """Voxels of one case; cached."""
    return render(BODY, FINDINGS, GRID, seed=np.random.SeedSequence(seed))


def write_volume(path: Path, array_XYZ: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    """Write a NIfTI file with qform, sform and unit set."""
    image = nib.Nifti1Image(array_XYZ, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def write_good_cohort(folder: Path) -> Path:
    """Write the cohort. Its radiomics are random numbers, which only `--recompute` detects."""
    rows = ["case_id,patient_id,label"]
    for seed, name in enumerate(CASES):
        case = write_case(folder / name, seed=seed, shape_xyz=(4, 4, 4), patient_id=f"P{seed}")
        write_volume(case / "ct.nii.gz", phantom(seed).hu_XYZ)
        write_volume(case / "liver.nii.gz", phantom(seed).liver_XYZ.astype(np.uint8))
        rows.append(f"{name},P{seed},{'bad' if seed else 'good'}")
    (folder / "cohort.csv").write_text("\n".join(rows) + "\n")
    return folder
