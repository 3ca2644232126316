"""Write synthetic cases to time a bundle with: a CT of clinical size from a seed, with numpy and nibabel only.

The anatomy is `tmi.toolkit.synthetic.phantom`'s, rendered coarsely and enlarged. The noise is sampled at full
resolution, because it determines the compression of the file and thus the time to decompress it. The radiomics table is
written as if the features had been extracted before. Predictions on these cases are meaningless.
"""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.cases.case import Case
from tmi.toolkit.clinical.schema import Schema
from tmi.toolkit.radiomics.feature_names import FEATURE_NAMES
from tmi.toolkit.radiomics.table import write_table
from tmi.toolkit.synthetic.phantom import Grid, disease_signs, render, sample_body

SCANNER_XYZ = (512, 512, 120)
"""Voxels of an abdominal CT with slices of about 2.5 mm."""
COARSE = 4
"""Downsampling factor of the anatomy along x and y; half of it along z."""
NOISE_HU = 12.0
"""Standard deviation of the noise."""


def write_bench_case(folder: Path, schema: Schema, *, seed: int, shape_XYZ: tuple[int, int, int] = SCANNER_XYZ) -> Case:
    """Write CT, radiomics table and clinical record to an empty or missing folder; equal seeds give equal values."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 11])
    hu_XYZ, affine = _ct(rng, shape_XYZ, seed)
    nib.save(nib.Nifti1Image(hu_XYZ, affine), folder / "ct.nii.gz")
    write_table(folder / "radiomics.csv", rng.normal(0, 10.0, len(FEATURE_NAMES)))
    record = {"patient_id": folder.name, "values": _values(schema), "report": None}
    (folder / "clinical.json").write_text(json.dumps(record), encoding="utf-8")
    return Case(folder=folder, case_id=folder.name)


def _ct(
    rng: np.random.Generator, shape_XYZ: tuple[int, int, int], seed: int
) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """Voxels in HU in the usual scanner orientation (x to the left, y to the back), and their affine."""
    body = sample_body(rng, female=bool(seed % 2), bmi=25.0)
    factors = (COARSE, COARSE, max(1, COARSE // 2))
    coarse = tuple(max(8, -(-n // f)) for n, f in zip(shape_XYZ, factors, strict=True))
    field = 2.06 * body.half_width_mm
    spacing = (field / coarse[0], field / coarse[1], 218.0 / coarse[2])
    grid = Grid(shape_XYZ=coarse, spacing_XYZ_mm=spacing, noise_hu=0.0, deposit_part=0.02)  # type: ignore[arg-type]
    phantom = render(body, disease_signs(liver=0.5, portal=0.2, deposit=0.3), grid, seed=np.random.SeedSequence(seed))
    hu = phantom.hu_XYZ
    for axis, (target, source) in enumerate(zip(shape_XYZ, coarse, strict=True)):  # nearest neighbour
        hu = np.take(hu, np.arange(target) * source // target, axis=axis)
    hu = hu.astype(np.int16)
    for z in range(shape_XYZ[2]):  # slice by slice: no float copy of the volume
        hu[:, :, z] += np.rint(rng.standard_normal(shape_XYZ[:2], dtype=np.float32) * NOISE_HU).astype(np.int16)
    affine = np.diag([-field / shape_XYZ[0], -field / shape_XYZ[1], 218.0 / shape_XYZ[2], 1.0])
    affine[:3, 3] = [field / 2, field / 2, -109.0]
    return np.ascontiguousarray(hu[::-1, ::-1]), affine


def _values(schema: Schema) -> dict[str, float | str | None]:
    """Every second field has a value, a low plausible number or the first choice; the others are missing."""
    values: dict[str, float | str | None] = {}
    for number, field in enumerate(schema.fields):
        if number % 2:
            values[field.name] = None
        elif field.choices:
            values[field.name] = field.choices[0]
        else:
            low, high = field.plausible or (1.0, 3.0)
            values[field.name] = round(low + (high - low) / 4, 2)
    return values
