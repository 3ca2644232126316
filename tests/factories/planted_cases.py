"""The corpus: faults planted into a good cohort, each with the code it must be found by; and variants without a fault.

`python -m factories.planted_cases` (from `tests/`) prints precision and recall over all of it.
"""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from factories.good_cohort import AFFINE, phantom, write_good_cohort, write_volume
from factories.planting import (
    CT,
    MASK,
    RECORD,
    TABLE,
    Plant,
    both,
    case_record,
    copy,
    copy_values,
    crop,
    ct,
    cylinder,
    edited_after_its_record,
    few_left,
    file,
    header,
    in_place,
    left_out,
    line,
    mask,
    mr,
    record_of_another_ct,
    record_that_fits,
    scaled,
    set_to,
    sheared,
    stored,
    turned,
    unpacked,
    values,
    with_unit,
    without,
)  # fmt: skip
from tmi.toolkit.cases.case import open_cohort
from tmi.toolkit.qc.case_checks import check_cases
from tmi.toolkit.qc.radiomics_comparison import TOLERANCE

LIVER = phantom(1).liver_XYZ
ALL = slice(None)
MIRROR = np.diag([-1.0, 1, 1, 1])
CUT = frozenset({"mask-edge", "liver-volume"})
LITTLE = frozenset({"mask-tiny"})

FAULTS: Mapping[str, Plant] = MappingProxyType(
    {
        "no case": Plant(code="case-missing", spoil=shutil.rmtree),
        "case record of another form": Plant(code="case-record", spoil=case_record(repairs="none")),
        "case record that is no JSON": Plant(code="case-record", spoil=lambda f: (f / "case.json").write_text("{")),
        "no CT": Plant(code="ct-missing", spoil=without(CT)),
        "CT cut off": Plant(code="ct-unreadable", spoil=file(CT, lambda d: d[: len(d) // 2])),
        "CT without its last bytes": Plant(code="ct-unreadable", spoil=file(CT, lambda d: d[:-6])),
        "CT that is a text": Plant(code="ct-unreadable", spoil=file(CT, lambda d: b"no image")),
        "CT that is not compressed": Plant(code="ct-unreadable", spoil=file(CT, gzip.decompress)),
        "CT with flipped bits": Plant(
            code="ct-unreadable", spoil=file(CT, lambda d: d[:9000] + bytes(b ^ 255 for b in d[9000:9010]) + d[9010:])
        ),
        "CT of 30 TB": Plant(
            code="ct-unreadable", spoil=unpacked(CT, in_place(lambda b: b.__setitem__(slice(42, 48), b"\xff\x7f" * 3)))
        ),
        "CT longer than its header": Plant(code="ct-unreadable", spoil=unpacked(CT, lambda b: bytes(b) + b"\0" * 9)),
        "CT of colours": Plant(
            code="ct-unreadable", spoil=unpacked(CT, in_place(lambda b: b.__setitem__(slice(70, 74), b"\x80\0\x18\0")))
        ),
        "CT over time": Plant(code="ct-not-3d", spoil=ct(lambda a: np.stack([a, a], axis=-1))),
        "CT of no declared orientation": Plant(
            code="ct-affine", spoil=header(CT, lambda i: (i.set_sform(None, 0), i.set_qform(None, 0)))
        ),
        "CT with an axis of no length": Plant(
            code="ct-affine", spoil=unpacked(CT, in_place(lambda b: b.__setitem__(slice(280, 292), b"\0" * 12)))
        ),
        "CT whose affines disagree by a flip": Plant(
            code="ct-forms", spoil=header(CT, lambda i: i.set_qform(MIRROR @ AFFINE, 1))
        ),
        "CT whose affines disagree in spacing": Plant(
            code="ct-forms", spoil=header(CT, lambda i: i.set_qform(AFFINE @ np.diag([1, 1, 1.5, 1]), 1))
        ),
        "CT with NaN": Plant(code="ct-nan", spoil=ct(lambda a: set_to((9, 9, 9), np.nan)(a.astype(np.float32)))),
        "CT with infinity": Plant(code="ct-nan", spoil=ct(lambda a: set_to((9, 9, 9), np.inf)(a.astype(np.float64)))),
        "CT of 8 bits": Plant(
            code="ct-8bit", spoil=ct(lambda a: ((np.clip(a, -160, 240) + 160) * 255 / 400).astype(np.uint8)),
        ),
        "CT scaled to 0..1": Plant(code="ct-rescaled", spoil=ct(lambda a: ((a + 1024) / 4095).astype(np.float32))),
        "CT scaled to 0..255": Plant(code="ct-8bit", spoil=ct(lambda a: ((a + 1024) / 4095 * 255).astype(np.float32))),
        "CT of zero mean, unit variance": Plant(
            code="ct-rescaled", spoil=ct(lambda a: ((a - a.mean()) / a.std()).astype(np.float32))
        ),
        "CT without its offset": Plant(code="ct-offset", spoil=ct(lambda a: (a + 1024).astype(np.uint16))),
        "CT without its offset, padded": Plant(
            code="ct-offset", spoil=ct(lambda a: cylinder(-2000, 1.15)((a + 1024).astype(np.int16))),
        ),
        "CT through a window": Plant(code="ct-not-hu", spoil=ct(lambda a: np.clip(a, -160, 240))),
        "MR": Plant(code="ct-not-hu", spoil=ct(mr)),
        "CT times 10": Plant(code="ct-not-hu", spoil=ct(lambda a: a.astype(np.int32) * 10)),
        "CT in metres, declared": Plant(code="ct-spacing", spoil=with_unit("meter", scaled(1e-3)), companions=LITTLE),
        "CT in metres": Plant(code="ct-spacing", spoil=both(lambda a: a, scaled(1e-3)), companions=LITTLE),
        "CT in centimetres": Plant(code="ct-spacing", spoil=both(lambda a: a, scaled(0.1)), companions=LITTLE),
        "CT in micrometres": Plant(
            code="ct-spacing", spoil=both(lambda a: a, scaled(1e3)), companions=frozenset({"liver-volume"})
        ),
        "CT in millimetres that says metres": Plant(code="ct-unit", spoil=with_unit("meter", AFFINE)),
        "CT of a tilted gantry": Plant(code="ct-sheared", spoil=both(lambda a: a, sheared(0.2))),
        "CT of 8 slices": Plant(
            code="ct-few-slices", spoil=both(lambda a: a[:, :, 14:22]), companions=CUT
        ),
        "CT with a slice filled in": Plant(code="ct-blank-slice", spoil=ct(set_to((ALL, ALL, 12), -1024))),
        "CT with a slice of zeros": Plant(code="ct-blank-slice", spoil=ct(set_to((ALL, ALL, 3), 0))),
        "CT with a slice twice": Plant(
            code="ct-duplicate-slice", spoil=ct(lambda a: np.insert(left_out(a), 20, a[:, :, 21], axis=2))
        ),
        "CT tilted": Plant(code="ct-oblique", spoil=both(lambda a: a, turned(15))),
        "CT padded with -2000": Plant(code="ct-padding", spoil=ct(cylinder(-2000, 1.1))),
        "CT padded with -3024": Plant(code="ct-padding", spoil=ct(cylinder(-3024, 1.2))),
        "CT filled with 0": Plant(code="ct-fill", spoil=ct(cylinder(0, 1.1))),
        "mask cut off": Plant(code="mask-unreadable", spoil=file(MASK, lambda d: d[: len(d) // 2])),
        "mask over time": Plant(code="mask-not-3d", spoil=mask(lambda a: np.stack([a, a], axis=-1))),
        "mask of no declared orientation": Plant(
            code="mask-affine", spoil=header(MASK, lambda i: (i.set_sform(None, 0), i.set_qform(None, 0)))
        ),
        "mask whose affines disagree": Plant(
            code="mask-forms", spoil=header(MASK, lambda i: i.set_qform(np.diag([1, -1, 1, 1]) @ AFFINE, 1))
        ),
        "mask with NaN": Plant(code="mask-nan", spoil=mask(lambda a: set_to((9, 9, 9), np.nan)(a.astype(np.float32)))),
        "mask of probabilities": Plant(code="mask-values", spoil=mask(lambda a: a.astype(np.float32) * 0.7)),
        "mask on a shifted grid": Plant(code="mask-grid", spoil=mask(lambda a: a, AFFINE + np.eye(4, k=3) * 25)),
        "mask of fewer slices": Plant(code="mask-grid", spoil=mask(lambda a: a[:, :, :-2])),
        "mask of coarser voxels": Plant(code="mask-grid", spoil=mask(lambda a: a[::2, ::2], AFFINE * [2, 2, 1, 1])),
        "mask whose header is flipped": Plant(code="mask-grid", spoil=mask(lambda a: a, MIRROR @ AFFINE)),
        "empty mask": Plant(code="mask-empty", spoil=mask(np.zeros_like)),
        "liver and tumour": Plant(code="mask-labels", spoil=mask(lambda a: a + few_left(a, 50))),
        "mask flipped left to right": Plant(code="mask-flipped", spoil=mask(lambda a: a[::-1])),
        "mask flipped back to front": Plant(code="mask-flipped", spoil=mask(lambda a: a[:, ::-1])),
        "mask upside down": Plant(code="mask-flipped", spoil=mask(lambda a: a[:, :, ::-1])),
        "mask of the lung": Plant(
            code="mask-content", spoil=mask(lambda a: (phantom(1).tissue_XYZ == 4).astype(np.uint8)),
            companions=CUT,
        ),
        "mask of the bones": Plant(
            code="mask-content", spoil=mask(lambda a: (phantom(1).tissue_XYZ == 3).astype(np.uint8)),
            companions=CUT,
        ),
        "mask of 30 mL": Plant(code="mask-tiny", spoil=mask(lambda a: few_left(a, 190))),
        **{
            f"liver cut off at the {name}": Plant(
                code="mask-edge", spoil=crop(axis, end), companions=frozenset({"liver-volume"})
            )
            for name, axis, end in (("left", 0, 0), ("right", 0, 1), ("back", 1, 0), ("front", 1, 1), ("bottom", 2, 0),
                                    ("top", 2, 1))
        },
        "liver of 4 litres": Plant(code="liver-volume", spoil=both(lambda a: a, scaled(1.5))),
        "liver of 300 mL": Plant(code="liver-volume", spoil=mask(lambda a: few_left(a, 1900))),
        "liver of -20 HU": Plant(
            code="liver-hu", spoil=ct(in_place(lambda a: a.__setitem__(LIVER, (a[LIVER] - 98) // 4 - 15)))
        ),
        "CT and mask mirrored": Plant(code="liver-left", spoil=both(lambda a: a[::-1])),
        "neither table nor mask": Plant(code="radiomics-missing", spoil=without(MASK, TABLE)),
        "table in UTF-16": Plant(code="radiomics-unreadable", spoil=file(TABLE, lambda d: d.decode().encode("utf-16"))),
        "table of 1,780": Plant(
            code="radiomics-columns",
            spoil=file(TABLE, lambda d: b"".join(x.rpartition(b",")[0] + b"\n" for x in d.splitlines())),
        ),
        "table of semicolons": Plant(code="radiomics-columns", spoil=file(TABLE, lambda d: d.replace(b",", b";"))),
        "table of two rows": Plant(code="radiomics-rows", spoil=file(TABLE, lambda d: d + d.splitlines()[1])),
        "table with infinity": Plant(code="radiomics-value", spoil=file(TABLE, lambda d: d.strip() + b"e999")),
        "table of another mask": Plant(code="radiomics-differ", spoil=lambda f: None, recompute=True),
        "table whose record names another CT": Plant(code="radiomics-stale", spoil=record_of_another_ct),
        "table edited after its record": Plant(code="radiomics-stale", spoil=edited_after_its_record),
        "mask of a line": Plant(code="radiomics-mask", spoil=mask(line), companions=LITTLE, recompute=True),
        "no record": Plant(code="clinical-missing", spoil=without(RECORD)),
        "record cut off": Plant(code="clinical-malformed", spoil=file(RECORD, lambda d: d[:40])),
        "record of deep nesting": Plant(code="clinical-malformed", spoil=file(RECORD, lambda d: b"[" * 100_000)),
        "unknown field": Plant(code="clinical-unknown-field", spoil=values(blood_of_dragons=7)),
        "text for a number": Plant(code="clinical-type", spoil=values(albumin="low")),
        "unknown unit": Plant(code="clinical-unit", spoil=values(albumin={"value": 4, "unit": "stone"})),
        "albumin in g/dL": Plant(code="clinical-unit-suspect", spoil=values(albumin=3.8)),
        "creatinine in mg/dL": Plant(code="clinical-unit-suspect", spoil=values(creatinine=0.9)),
        "cholesterol in mg/dL": Plant(code="clinical-unit-suspect", spoil=values(cholesterol=190)),
        "height in metres": Plant(code="clinical-unit-suspect", spoil=values(height=1.7)),
        "g/L said to be g/dL": Plant(
            code="clinical-unit-suspect", spoil=values(haemoglobin={"value": 140, "unit": "g/dL"})
        ),
        "bilirubin in mg/dL": Plant(code="clinical-unit-doubt", spoil=values(total_bilirubin=0.7)),
        "mistyped": Plant(code="clinical-range", spoil=values(bmi=240)),
        "negative": Plant(code="clinical-range", spoil=values(alt=-3)),
        "record of another patient": Plant(code="patient-mismatch", spoil=copy(RECORD)),
        "blood a year before the CT": Plant(code="dates-apart", spoil=case_record(days_from_blood_to_ct=365)),
        "CT before the blood": Plant(code="dates-apart", spoil=case_record(days_from_blood_to_ct=-120)),
        "CT of another case": Plant(
            code="duplicate-ct", spoil=copy(CT), companions=frozenset()
        ),
        "CT of another case, stored anew": Plant(
            code="duplicate-ct", spoil=lambda f: write_volume(f / CT, phantom(0).hu_XYZ.astype(np.int32))
        ),
        "table of another case": Plant(code="duplicate-radiomics", spoil=copy(TABLE)),
        "values of another patient": Plant(code="duplicate-record", spoil=copy_values),
    }
)  # fmt: skip
"""Name -> fault. At least one for every check that a case folder can show."""


VARIANTS: Mapping[str, Plant] = MappingProxyType(
    {
        name: Plant(code=None, spoil=spoil)
        for name, spoil in {
            "untouched": lambda f: None,
            "table with its record": record_that_fits,
            "stored left to right": stored("int16", codes="LPS"),
            "stored as sagittal slices": stored("int16", codes="PSR"),
            "float32": stored("float32"),
            "float64, upside down": stored("float64", codes="RAI"),
            "int32": stored("int32"),
            "12 bits with the offset in the header": stored("uint16", offset=-1024),
            "without a mask": without(MASK),
            "without a table": without(TABLE),
            "turned by 5 degrees": both(lambda a: a, turned(5)),
            "turned by 5 degrees, with both affines": both(lambda a: a, turned(-5)),
            "empty slices at both ends": both(lambda a: np.pad(a, ((0, 0), (0, 0), (2, 2)), constant_values=a.min())),
            "air clipped at -1000": ct(lambda a: np.maximum(a, -1000)),
            "metal": ct(set_to((slice(20, 24), 20, 10), 3071)),
            "a fatty liver": ct(in_place(lambda a: a.__setitem__(LIVER, (a[LIVER] - 98) // 2 + 25))),
            "values in conventional units": values(
                albumin={"value": 3.8, "unit": "g/dL"}, total_bilirubin={"value": 1.2, "unit": "mg/dL"}
            ),
            "grave values": values(albumin=18, total_bilirubin=620, creatinine=400, urea=45, platelets=15, alt=3000),
            "a record of the import": case_record(source={"kind": "dicom"}, days_from_blood_to_ct=-3),
            "a free report": lambda f: (f / RECORD).write_text(
                json.dumps({"patient_id": "P1", "values": {}, "report": "Child-Pugh B."})
            ),
            "a table with missing cells": file(TABLE, lambda d: d.rpartition(b",")[0] + b",\n"),
        }.items()
    }
)
"""Name -> a case that is unusual and right: nothing may be found."""


@dataclass(frozen=True)
class Score:
    """Over the whole corpus."""

    faults: int
    found: int
    variants: int
    true: int
    false: int

    @property
    def recall(self) -> float:
        """Part of the faults that were found by their own code."""
        return self.found / self.faults

    @property
    def precision(self) -> float:
        """Part of the findings that belong to the fault: its code or a declared companion."""
        return self.true / (self.true + self.false)


def codes_of(plant: Plant, good: Path, folder: Path) -> set[tuple[str, str]]:
    """(case, code) of what is found once the fault is planted into a copy of the good cohort."""
    cohort = Path(shutil.copytree(good, folder))
    plant.spoil(cohort / "C1")
    cases = [c for c in open_cohort(cohort).cases if not plant.recompute or c.case_id == "C1"]
    findings = check_cases(cases, radiomics_tolerance=TOLERANCE if plant.recompute else None)
    shutil.rmtree(cohort)
    return {(f.case_id, f.code) for f in findings}


def score(found: Mapping[str, set[tuple[str, str]]]) -> Score:
    """Precision and recall, from what was found for each name of `FAULTS` and `VARIANTS`."""
    hits = true = false = 0
    for name, codes in found.items():
        plant = FAULTS.get(name) or VARIANTS[name]
        hits += plant.code is not None and ("C1", plant.code) in codes
        right = {("C1", c) for c in {plant.code, *plant.companions} if c}
        true, false = true + len(codes & right), false + len(codes - right)
    return Score(faults=len(FAULTS), found=hits, variants=len(VARIANTS), true=true, false=false)


def told(result: Score) -> str:
    """The line that docs/checks.md holds."""
    return (
        f"recall {result.recall:.3f} ({result.found} of {result.faults} faults found by their own code), "
        f"precision {result.precision:.3f} ({result.false} false among {result.true + result.false} findings "
        f"on {result.faults} faulty and {result.variants} sound cases)"
    )


def main() -> None:
    """Print precision and recall."""
    with tempfile.TemporaryDirectory() as temporary:
        good = write_good_cohort(Path(temporary) / "good")
        plants = {**FAULTS, **VARIANTS}
        print(told(score({n: codes_of(p, good, Path(temporary) / "case") for n, p in plants.items()})))


if __name__ == "__main__":
    main()
