"""Functions that plant a fault in case C1 of the valid cohort, in one file or one array."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np

from factories.good_cohort import AFFINE, GRID, phantom, write_volume
from tmi.toolkit.cases.case import Case, open_case
from tmi.toolkit.radiomics.provenance import RadiomicsRecord, write_record
from tmi.toolkit.radiomics.settings import SETTINGS_DIGEST
from tmi.toolkit.storage.hashing import sha256_file

Corruption = Callable[[Path], object]
CT, MASK, TABLE, RECORD = "ct.nii.gz", "liver.nii.gz", "radiomics.csv", "clinical.json"


@dataclass(frozen=True, kw_only=True)
class PlantedFault:
    """One fault, planted into case C1 of the good cohort."""

    code: str | None
    """Code of the check that must find it; None for a valid variant."""
    corrupt: Corruption
    """Changes the folder of C1."""
    companions: frozenset[str] = frozenset()
    """Other codes that the same fault is expected to have."""
    recompute: bool = False
    """Whether only `tmi check --recompute` finds it."""


def ct(change: Callable[[np.ndarray], np.ndarray], affine: np.ndarray = AFFINE) -> Corruption:
    """Change the CT's voxels (x, y, z)."""
    return lambda f: write_volume(f / CT, change(phantom(1).hu_XYZ.copy()), affine)


def mask(change: Callable[[np.ndarray], np.ndarray], affine: np.ndarray = AFFINE) -> Corruption:
    """Change the mask's voxels (x, y, z)."""
    return lambda f: write_volume(f / MASK, change(phantom(1).liver_XYZ.astype(np.uint8)), affine)


def both(change: Callable[[np.ndarray], np.ndarray], affine: np.ndarray = AFFINE) -> Corruption:
    """Change the voxels of CT and mask in the same way."""
    return lambda f: (ct(change, affine)(f), mask(change, affine)(f))


def header(name: str, change: Callable[[nib.Nifti1Image], object]) -> Corruption:
    """Change an image's header and write it again."""

    def corrupt(folder: Path) -> None:
        image = nib.load(folder / name)
        image = nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine, image.header)
        change(image)
        nib.save(image, folder / name)

    return corrupt


def file(name: str, change: Callable[[bytes], bytes]) -> Corruption:
    """Change a file's bytes."""
    return lambda f: (f / name).write_bytes(change((f / name).read_bytes()))


def unpacked(name: str, change: Callable[[bytearray], bytes]) -> Corruption:
    """Change the bytes inside a gzip file."""
    return file(name, lambda data: gzip.compress(change(bytearray(gzip.decompress(data))), 1))


def values(**fields: object) -> Corruption:
    """Set values of the clinical record."""

    def corrupt(folder: Path) -> None:
        record = json.loads((folder / RECORD).read_text())
        record["values"] |= fields
        (folder / RECORD).write_text(json.dumps(record))

    return corrupt


def blood_date_of(text: str) -> Corruption:
    """Give the clinical record this blood date."""

    def corrupt(folder: Path) -> None:
        record = json.loads((folder / RECORD).read_text())
        (folder / RECORD).write_text(json.dumps(record | {"blood_date": text}))

    return corrupt


def record_with(count: int) -> Corruption:
    """Keep only the first values of the clinical record."""

    def corrupt(folder: Path) -> None:
        record = json.loads((folder / RECORD).read_text())
        given = {name: value for name, value in record["values"].items() if value is not None}
        record["values"] = dict(list(given.items())[:count])
        (folder / RECORD).write_text(json.dumps(record))

    return corrupt


def record_of_nulls(folder: Path) -> None:
    """Keep the fields of the clinical record, without a value."""
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps(record | {"values": dict.fromkeys(record["values"])}))


def both_of_a_thigh(folder: Path) -> None:
    """Replace the CT by a thigh, soft tissue around a bone, and the mask by a mass beside the bone."""
    (x, y), rng = (
        np.meshgrid(*(np.linspace(-1, 1, n) for n in GRID.shape_XYZ[:2]), indexing="ij"),
        np.random.default_rng(1),
    )
    plane = np.select([x**2 + y**2 < 0.03, (x - 0.4) ** 2 + y**2 < 0.08, x**2 + y**2 < 0.7], [900, 60, 45], -1000)
    mass = (x - 0.4) ** 2 + y**2 < 0.08
    slices = np.arange(GRID.shape_XYZ[2])
    ct = plane[:, :, None] + rng.normal(0, 8, GRID.shape_XYZ)
    write_volume(folder / CT, ct.round().clip(-1024, 3000).astype(np.int16), AFFINE)
    liver = mass[:, :, None] & (abs(slices - len(slices) // 2) < len(slices) // 3)
    write_volume(folder / MASK, liver.astype(np.uint8), AFFINE)


def report_of(text: str) -> Corruption:
    """Give the clinical record a free-text report."""

    def corrupt(folder: Path) -> None:
        record = json.loads((folder / RECORD).read_text())
        (folder / RECORD).write_text(json.dumps(record | {"report": text}))

    return corrupt


def in_place(change: Callable[[np.ndarray], object]) -> Callable[[np.ndarray], np.ndarray]:
    """Turn an assignment into a function that returns the array."""
    return lambda a: (change(a), a)[1]


def scaled(factor: float) -> np.ndarray:
    """The affine scaled by a factor, as in another unit."""
    return np.diag([factor] * 3 + [1.0]) @ AFFINE


def turned(degrees: float) -> np.ndarray:
    """The affine rotated about the z axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]) @ AFFINE


def sheared(millimetres_per_mm: float) -> np.ndarray:
    """The affine of a tilted gantry."""
    shear = np.eye(4)
    shear[1, 2] = millimetres_per_mm
    return shear @ AFFINE


def crop(axis: int, end: int) -> Corruption:
    """Cut CT and mask so that the mask's outermost voxels lie on a face."""
    liver = phantom(1).liver_XYZ
    where = np.flatnonzero(liver.any(axis=tuple(a for a in range(3) if a != axis)))
    cut = [slice(None)] * 3
    cut[axis] = slice(int(where[0]) + 1, None) if end == 0 else slice(None, int(where[-1]))
    return both(lambda a: a[tuple(cut)])


def without(*names: str) -> Corruption:
    """Remove files."""
    return lambda f: [(f / n).unlink() for n in names]


def with_unit(unit: str, affine: np.ndarray) -> Corruption:
    """Both files with an affine in a declared unit."""
    declare = (header(n, lambda i: i.header.set_xyzt_units(unit)) for n in (CT, MASK))
    steps = (both(lambda a: a, affine), *declare)
    return lambda f: [s(f) for s in steps]


def cylinder(value: int, radius: float) -> Callable[[np.ndarray], np.ndarray]:
    """Set all voxels outside a round field of view to a value; radius in half widths."""
    x, y = np.meshgrid(*(np.linspace(-1, 1, n) for n in GRID.shape_XYZ[:2]), indexing="ij")
    return in_place(lambda a: a.__setitem__(x**2 + y**2 > radius**2, value))


def shrink_mask(liver: np.ndarray, count: int) -> np.ndarray:
    """The `count` voxels of the mask nearest to its centre."""
    where = np.argwhere(liver)
    order = np.argsort(np.linalg.norm((where - where.mean(axis=0)) * GRID.spacing_XYZ_mm, axis=1))
    rest = np.zeros_like(liver)
    rest[tuple(where[order[:count]].T)] = 1
    return rest


def line(liver: np.ndarray) -> np.ndarray:
    rest = np.zeros_like(liver)
    x, y, z = np.argwhere(shrink_mask(liver, 1))[0]
    rest[x - 2 : x + 3, y, z] = 1
    return rest


def one_voxel_of(value: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda ct: set_to(tuple(np.argwhere(phantom(1).liver_XYZ)[99]), value)(ct)


def set_to(index: object, value: object) -> Callable[[np.ndarray], np.ndarray]:
    return in_place(lambda a: a.__setitem__(index, value))


def copy(name: str) -> Corruption:
    return lambda f: shutil.copy(f.parent / "C0" / name, f / name)


def copy_values(folder: Path) -> None:
    other = json.loads((folder.parent / "C0" / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps(other | {"patient_id": "P1"}))


def case_record(**content: object) -> Corruption:
    return lambda f: (f / "case.json").write_text(json.dumps({"schema": "tmi-case/1"} | content))


def recorded(folder: Path) -> tuple[Case, RadiomicsRecord]:
    """The case, and the provenance record that an extraction writes next to its table."""
    case = open_case(folder)
    return case, RadiomicsRecord(
        source="extracted",
        table_sha256=sha256_file(case.radiomics),
        ct_sha256=sha256_file(case.ct),
        mask_sha256=sha256_file(case.mask),
        settings_digest=SETTINGS_DIGEST,
    )


def record_of_another_ct(folder: Path) -> None:
    case, record = recorded(folder)
    write_record(case, replace(record, ct_sha256="0" * 64))


def edited_after_its_record(folder: Path) -> None:
    case, record = recorded(folder)
    write_record(case, record)
    case.radiomics.write_bytes(case.radiomics.read_bytes() + b"\n")


def record_that_fits(folder: Path) -> None:
    write_record(*recorded(folder))


def mr(a: np.ndarray) -> np.ndarray:
    """Intensities like those of MR: high in fat, low in bone, none in air."""
    return np.clip(np.interp(a, [-1000, -100, 50, 110, 500, 3000], [5, 700, 320, 260, 60, 20]), 0, 900).astype(np.int16)


def without_slice_12(a: np.ndarray) -> np.ndarray:
    return np.delete(a, 12, axis=2)


def stored(dtype: str, *, offset: int = 0, codes: str = "RAS") -> Corruption:
    def corrupt(folder: Path) -> None:
        for name, array in ((CT, phantom(1).hu_XYZ), (MASK, phantom(1).liver_XYZ.astype(np.uint8))):
            kind = dtype if name == CT else "uint8"
            voxels = (array.astype(np.int64) - (offset if name == CT else 0)).astype(kind)
            image = nib.Nifti1Image(voxels, AFFINE)
            target = nib.orientations.axcodes2ornt(tuple(codes))
            image = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(AFFINE), target))
            if name == CT and offset:
                image.header.set_slope_inter(1.0, float(offset))
            nib.save(image, folder / name)

    return corrupt
