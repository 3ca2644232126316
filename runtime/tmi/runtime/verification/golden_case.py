"""The golden case: a whole case folder made from a seed, for the road from files to the network's inputs.

The golden inputs (`tmi.runtime.verification.golden_inputs`) judge the graphs; they begin where preparation ends. This
case begins at the
files: a CT stored in an orientation of its own with a scaled header, its mask, 1,781 raw features, a clinical record.
Whoever prepares it with another window, exchanged axes, unscaled features or a lost attention mask gets other arrays
than those that `golden-case.safetensors` holds. It is prepared to `SHAPE_DHW`, so that it costs milliseconds at every
preset; window, scale and resampling are the preset's.
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
"""Three sizes that no exchange of axes leaves alone."""
SIZE_XYZ = (40, 34, 26)
SPACING_XYZ_MM = (5.0, 6.0, 8.0)
STORED_AXES = (2, 0, 1)
"""The file's axes are z, x, y of the patient; x and y run towards left and posterior, as scanners store them."""
HEADER_OFFSET_HU = -1024
"""Intercept in the CT's header, which a reader must apply."""


def golden_config(config: Config) -> Config:
    """The bundle's own settings, but a small volume."""
    return replace(config, ct=replace(config.ct, shape_DHW=SHAPE_DHW))


def write_golden_case(folder: Path, schema: Schema, *, seed: int) -> Case:
    """Write the case into an empty or absent folder; the same seed gives the same voxels and values everywhere."""
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
    """Raw draws of PCG64 below 2^16: the stream that numpy keeps stable."""
    words = np.random.PCG64(np.random.SeedSequence([seed, 7, purpose])).random_raw(count)
    return (words >> np.uint64(48)).astype(np.int64)


def _anatomy(seed: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """HU and liver, [x,y,z] in RAS+: a body, a liver in its upper right half, noise; integer arithmetic."""
    nx, ny, nz = SIZE_XYZ
    # odd numerators: voxel centres in (-1, 1) as exact fractions n / size
    x, y, z = np.meshgrid(*(2 * np.arange(n) + 1 - n for n in SIZE_XYZ), indexing="ij")
    body = 100 * x * x * ny * ny < 81 * nx * nx * ny * ny - 127 * y * y * nx * nx
    # 1000ths of the half axes: centre (350, 0, 100), radii (420, 500, 620)
    parts = ((1000 * x // nx - 350, 420), (1000 * y // ny, 500), (1000 * z // nz - 100, 620))
    liver: NDArray[np.bool_] = np.sum([(1000 * offset // radius) ** 2 for offset, radius in parts], axis=0) < 1000**2
    hu = np.full(SIZE_XYZ, -1000, dtype=np.int64)
    hu[body] = 40
    hu[liver] = 105
    noise = _integers(seed, 0, hu.size).reshape(SIZE_XYZ) % 49 - 24
    return (hu + noise).clip(-1024, 3000), liver


def _affine() -> NDArray[np.float64]:
    """Stored (i, j, k) -> RAS+ mm, for axes in the order `STORED_AXES`, x and y running to the left and to the back."""
    world = np.zeros((4, 4))
    for column, axis in enumerate(STORED_AXES):
        world[axis, column] = SPACING_XYZ_MM[axis] * (1 if axis == 2 else -1)
    world[:3, 3] = [90.0, 95.0, -110.0]
    world[3, 3] = 1.0
    return world


def _as_stored(array_xyz: NDArray[np.generic]) -> NDArray[np.generic]:
    return np.ascontiguousarray(array_xyz[::-1, ::-1].transpose(STORED_AXES))


def _features(seed: int) -> NDArray[np.float64]:
    """Raw features over many orders of size, two of them missing, as extraction gives them."""
    draws = _integers(seed, 1, 2 * len(FEATURE_NAMES)).reshape(2, -1)
    values: NDArray[np.float64] = (draws[0] - 2**15) / 2**15 * 2.0 ** (draws[1] % 17 - 4)
    values[[3, 1000]] = np.nan
    return values


def _values(schema: Schema) -> dict[str, float | str | None]:
    """A value for every second field of whatever schema: the middle of its plausible range, or its first word."""
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
