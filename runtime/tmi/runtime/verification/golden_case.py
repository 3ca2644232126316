"""Golden case: a complete case folder generated from a seed, to check the preprocessing of files.

The golden inputs (`tmi.runtime.verification.golden_inputs`) check the graphs and start after preprocessing. The golden
case starts at the files: a CT in an unusual orientation with a rescale intercept in its header, its mask, 1,781 raw
features, and a clinical record. A wrong window, exchanged axes, unscaled features or a lost attention mask give arrays
that differ from those in `golden-case.safetensors`. The case is prepared to `SHAPE_DHW`, which takes milliseconds at
every preset; window, scale and resampling are those of the preset.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.cases.case import Case
from tmi.toolkit.clinical.schema import Schema
from tmi.toolkit.config.schema import Config
from tmi.toolkit.radiomics.feature_names import FEATURE_NAMES
from tmi.toolkit.radiomics.table import write_table

SHAPE_DHW = (11, 17, 13)
"""Three different sizes, so that any exchange of axes changes the shape."""
SIZE_XYZ = (40, 34, 26)
SPACING_XYZ_MM = (5.0, 6.0, 8.0)
STORED_AXES = (2, 0, 1)
"""Axes of the file are z, x, y of the patient; x and y point to left and posterior, as scanners store them."""
HEADER_OFFSET_HU = -1024
"""Intercept in the CT's header: HU = stored value + intercept."""


def golden_config(config: Config) -> Config:
    """The bundle's configuration with the volume shape `SHAPE_DHW`."""
    return replace(config, ct=replace(config.ct, shape_DHW=SHAPE_DHW))


def write_golden_case(folder: Path, schema: Schema, *, seed: int) -> Case:
    """Write the case into an empty or missing folder; a seed gives the same voxels and values on every machine."""
    folder.mkdir(parents=True, exist_ok=True)
    hu_xyz, liver_xyz = _anatomy(seed)
    stored = (hu_xyz - HEADER_OFFSET_HU).astype(np.uint16)
    ct = nib.Nifti1Image(_as_stored(stored), _affine())
    ct.header.set_slope_inter(1.0, HEADER_OFFSET_HU)
    nib.save(ct, folder / "ct.nii.gz")
    nib.save(nib.Nifti1Image(_as_stored(liver_xyz.astype(np.uint8)), _affine()), folder / "liver.nii.gz")
    write_table(folder / "radiomics.csv", _features(seed))
    record = {"patient_id": "golden", "values": _values(schema), "report": None}
    (folder / "clinical.json").write_text(json.dumps(record), encoding="utf-8")
    return Case(folder=folder, case_id="golden")


def _integers(seed: int, purpose: int, count: int) -> NDArray[np.int64]:
    """Integers in [0, 2^16) from the raw PCG64 stream, which numpy keeps stable across versions."""
    words = np.random.PCG64(np.random.SeedSequence([seed, 7, purpose])).random_raw(count)
    return (words >> np.uint64(48)).astype(np.int64)  # the upper 16 of 64 bits


def _anatomy(seed: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """HU and liver mask, [x,y,z] in RAS+: an elliptic body with a liver, plus noise, all in integer arithmetic."""
    nx, ny, nz = SIZE_XYZ
    # Voxel centres n / size in (-1, 1) as odd integer numerators: comparisons stay exact, without float rounding.
    x, y, z = np.meshgrid(*(2 * np.arange(n) + 1 - n for n in SIZE_XYZ), indexing="ij")
    # Ellipse (x/nx)^2 / 0.81 + (y/ny)^2 / 0.64 < 1, up to the rounding of 0.81 / 0.64 to 127 / 100.
    body = 100 * x * x * ny * ny < 81 * nx * nx * ny * ny - 127 * y * y * nx * nx
    # Ellipsoid with centre (0.35, 0, 0.1) and radii (0.42, 0.5, 0.62) of the half axes, in units of 1/1000.
    parts = ((1000 * x // nx - 350, 420), (1000 * y // ny, 500), (1000 * z // nz - 100, 620))
    liver: NDArray[np.bool_] = np.sum([(1000 * offset // radius) ** 2 for offset, radius in parts], axis=0) < 1000**2
    hu = np.full(SIZE_XYZ, -1000, dtype=np.int64)
    hu[body] = 40
    hu[liver] = 105
    noise = _integers(seed, 0, hu.size).reshape(SIZE_XYZ) % 49 - 24
    return (hu + noise).clip(-1024, 3000), liver


def _affine() -> NDArray[np.float64]:
    """Affine from stored (i, j, k) to RAS+ mm: axes in the order `STORED_AXES`, x to the left, y to posterior."""
    world = np.zeros((4, 4))
    for column, axis in enumerate(STORED_AXES):
        world[axis, column] = SPACING_XYZ_MM[axis] * (1 if axis == 2 else -1)
    world[:3, 3] = [90.0, 95.0, -110.0]
    world[3, 3] = 1.0
    return world


def _as_stored(array_xyz: NDArray[np.generic]) -> NDArray[np.generic]:
    return np.ascontiguousarray(array_xyz[::-1, ::-1].transpose(STORED_AXES))


def _features(seed: int) -> NDArray[np.float64]:
    """Raw features of very different magnitudes, two of them missing, as extraction produces them."""
    draws = _integers(seed, 1, 2 * len(FEATURE_NAMES)).reshape(2, -1)
    values: NDArray[np.float64] = (draws[0] - 2**15) / 2**15 * 2.0 ** (draws[1] % 17 - 4)
    values[[3, 1000]] = np.nan
    return values


def _values(schema: Schema) -> dict[str, float | str | None]:
    """A value for every second field of a schema: the lower quarter of its plausible range, or its first choice."""
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
