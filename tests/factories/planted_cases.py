"""Test corpus of the case checks: faults planted into a valid cohort with the code that must find each, and valid variants.

`python -m factories.planted_cases` (in `tests/`) prints precision and recall on the corpus.
"""

# ruff: noqa: E501 - one case per row
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

from factories.case_corruptions import (
    CT,
    MASK,
    RECORD,
    TABLE,
    PlantedFault,
    blood_date_of,
    both,
    both_of_a_thigh,
    case_record,
    copy,
    copy_values,
    crop,
    ct,
    cylinder,
    edited_after_its_record,
    file,
    header,
    in_place,
    line,
    mask,
    mr,
    one_voxel_of,
    record_of_another_ct,
    record_of_nulls,
    record_that_fits,
    record_with,
    report_of,
    scaled,
    set_to,
    sheared,
    shrink_mask,
    stored,
    turned,
    unpacked,
    values,
    with_unit,
    without,
    without_slice_12,
)  # fmt: skip
from factories.good_cohort import AFFINE, phantom, write_good_cohort, write_volume
from tmi.toolkit.cases.case import open_cohort
from tmi.toolkit.qc.case_checks import check_cases
from tmi.toolkit.qc.radiomics_comparison import TOLERANCE

LIVER = phantom(1).liver_XYZ
ALL = slice(None)
MIRROR = np.diag([-1.0, 1, 1, 1])
CUT = frozenset({"mask-edge", "liver-volume"})
TINY = frozenset({"mask-tiny"})

FAULTS: Mapping[str, PlantedFault] = MappingProxyType(
    {
        "no case": PlantedFault(code="case-missing", corrupt=shutil.rmtree),
        "case record of another form": PlantedFault(code="case-record", corrupt=case_record(repairs="none")),
        "mask of a label that is named as something else": PlantedFault(code="mask-name", corrupt=case_record(source={"mask": {"named_otherwise": True}})),
        "case record that is no JSON": PlantedFault(code="case-record", corrupt=lambda f: (f / "case.json").write_text("{")),
        "no CT": PlantedFault(code="ct-missing", corrupt=without(CT)),
        "CT cut off": PlantedFault(code="ct-unreadable", corrupt=file(CT, lambda d: d[: len(d) // 2])),
        "CT without its last bytes": PlantedFault(code="ct-unreadable", corrupt=file(CT, lambda d: d[:-6])),
        "CT that is a text": PlantedFault(code="ct-unreadable", corrupt=file(CT, lambda d: b"no image")),
        "CT that is not compressed": PlantedFault(code="ct-unreadable", corrupt=file(CT, gzip.decompress)),
        "CT with flipped bits": PlantedFault(
            code="ct-unreadable", corrupt=file(CT, lambda d: d[:9000] + bytes(b ^ 255 for b in d[9000:9010]) + d[9010:])
        ),
        "CT of 30 TB": PlantedFault(
            code="ct-unreadable", corrupt=unpacked(CT, in_place(lambda b: b.__setitem__(slice(42, 48), b"\xff\x7f" * 3)))
        ),
        "CT longer than its header": PlantedFault(code="ct-unreadable", corrupt=unpacked(CT, lambda b: bytes(b) + b"\0" * 9)),
        "CT of colours": PlantedFault(
            code="ct-unreadable", corrupt=unpacked(CT, in_place(lambda b: b.__setitem__(slice(70, 74), b"\x80\0\x18\0")))
        ),
        "CT over time": PlantedFault(code="ct-not-3d", corrupt=ct(lambda a: np.stack([a, a], axis=-1))),
        "CT of no declared orientation": PlantedFault(
            code="ct-affine", corrupt=header(CT, lambda i: (i.set_sform(None, 0), i.set_qform(None, 0)))
        ),
        "CT with an axis of no length": PlantedFault(
            code="ct-affine", corrupt=unpacked(CT, in_place(lambda b: b.__setitem__(slice(280, 292), b"\0" * 12)))
        ),
        "CT whose affines disagree by a flip": PlantedFault(
            code="ct-forms", corrupt=header(CT, lambda i: i.set_qform(MIRROR @ AFFINE, 1))
        ),
        "CT whose affines disagree in spacing": PlantedFault(
            code="ct-forms", corrupt=header(CT, lambda i: i.set_qform(AFFINE @ np.diag([1, 1, 1.5, 1]), 1))
        ),
        "CT with NaN": PlantedFault(code="ct-nan", corrupt=ct(lambda a: set_to((9, 9, 9), np.nan)(a.astype(np.float32)))),
        "CT with infinity": PlantedFault(code="ct-nan", corrupt=ct(lambda a: set_to((9, 9, 9), np.inf)(a.astype(np.float64)))),
        "CT of 8 bits": PlantedFault(
            code="ct-8bit", corrupt=ct(lambda a: ((np.clip(a, -160, 240) + 160) * 255 / 400).astype(np.uint8)),
        ),
        "CT scaled to 0..1": PlantedFault(code="ct-rescaled", corrupt=ct(lambda a: ((a + 1024) / 4095).astype(np.float32))),
        "CT scaled to 0..255": PlantedFault(code="ct-8bit", corrupt=ct(lambda a: ((a + 1024) / 4095 * 255).astype(np.float32))),
        "CT of zero mean, unit variance": PlantedFault(
            code="ct-rescaled", corrupt=ct(lambda a: ((a - a.mean()) / a.std()).astype(np.float32))
        ),
        "CT without its offset": PlantedFault(code="ct-offset", corrupt=ct(lambda a: (a + 1024).astype(np.uint16))),
        "CT without its offset, padded": PlantedFault(
            code="ct-offset", corrupt=ct(lambda a: cylinder(-2000, 1.15)((a + 1024).astype(np.int16))),
        ),
        "CT through a window": PlantedFault(code="ct-not-hu", corrupt=ct(lambda a: np.clip(a, -160, 240))),
        "MR": PlantedFault(code="ct-not-hu", corrupt=ct(mr)),
        "CT times 10": PlantedFault(code="ct-not-hu", corrupt=ct(lambda a: a.astype(np.int32) * 10)),
        "CT in metres, declared": PlantedFault(code="ct-spacing", corrupt=with_unit("meter", scaled(1e-3)), companions=TINY),
        "CT in metres": PlantedFault(code="ct-spacing", corrupt=both(lambda a: a, scaled(1e-3)), companions=TINY),
        "CT in centimetres": PlantedFault(code="ct-spacing", corrupt=both(lambda a: a, scaled(0.1)), companions=TINY),
        "CT in micrometres": PlantedFault(
            code="ct-spacing", corrupt=both(lambda a: a, scaled(1e3)), companions=frozenset({"liver-volume"})
        ),
        "CT in millimetres that says metres": PlantedFault(code="ct-unit", corrupt=with_unit("meter", AFFINE)),
        "CT of a tilted gantry": PlantedFault(code="ct-sheared", corrupt=both(lambda a: a, sheared(0.2))),
        "CT of 8 slices": PlantedFault(
            code="ct-few-slices", corrupt=both(lambda a: a[:, :, 14:22]), companions=CUT
        ),
        "CT with a slice filled in": PlantedFault(code="ct-blank-slice", corrupt=ct(set_to((ALL, ALL, 12), -1024))),
        "CT with a slice of zeros": PlantedFault(code="ct-blank-slice", corrupt=ct(set_to((ALL, ALL, 3), 0))),
        "CT with a slice twice": PlantedFault(
            code="ct-duplicate-slice", corrupt=ct(lambda a: np.insert(without_slice_12(a), 20, a[:, :, 21], axis=2))
        ),
        "CT tilted": PlantedFault(code="ct-oblique", corrupt=both(lambda a: a, turned(15))),
        "CT padded with -2000": PlantedFault(code="ct-padding", corrupt=ct(cylinder(-2000, 1.1))),
        "CT padded with -3024": PlantedFault(code="ct-padding", corrupt=ct(cylinder(-3024, 1.2))),
        "CT filled with 0": PlantedFault(code="ct-fill", corrupt=ct(cylinder(0, 1.1))),
        "mask cut off": PlantedFault(code="mask-unreadable", corrupt=file(MASK, lambda d: d[: len(d) // 2])),
        "mask over time": PlantedFault(code="mask-not-3d", corrupt=mask(lambda a: np.stack([a, a], axis=-1))),
        "mask of no declared orientation": PlantedFault(
            code="mask-affine", corrupt=header(MASK, lambda i: (i.set_sform(None, 0), i.set_qform(None, 0)))
        ),
        "mask whose affines disagree": PlantedFault(
            code="mask-forms", corrupt=header(MASK, lambda i: i.set_qform(np.diag([1, -1, 1, 1]) @ AFFINE, 1))
        ),
        "mask with NaN": PlantedFault(code="mask-nan", corrupt=mask(lambda a: set_to((9, 9, 9), np.nan)(a.astype(np.float32)))),
        "mask of probabilities": PlantedFault(code="mask-values", corrupt=mask(lambda a: a.astype(np.float32) * 0.7)),
        "mask on a shifted grid": PlantedFault(code="mask-grid", corrupt=mask(lambda a: a, AFFINE + np.eye(4, k=3) * 25)),
        "mask of fewer slices": PlantedFault(code="mask-grid", corrupt=mask(lambda a: a[:, :, :-2])),
        "mask of coarser voxels": PlantedFault(code="mask-grid", corrupt=mask(lambda a: a[::2, ::2], AFFINE * [2, 2, 1, 1])),
        "mask whose header is flipped": PlantedFault(code="mask-grid", corrupt=mask(lambda a: a, MIRROR @ AFFINE)),
        "empty mask": PlantedFault(code="mask-empty", corrupt=mask(np.zeros_like)),
        "liver and tumour": PlantedFault(code="mask-labels", corrupt=mask(lambda a: a + shrink_mask(a, 50))),
        "mask flipped left to right": PlantedFault(code="mask-flipped", corrupt=mask(lambda a: a[::-1])),
        "mask flipped back to front": PlantedFault(code="mask-flipped", corrupt=mask(lambda a: a[:, ::-1])),
        "mask upside down": PlantedFault(code="mask-flipped", corrupt=mask(lambda a: a[:, :, ::-1])),
        "mask of the lung": PlantedFault(
            code="mask-content", corrupt=mask(lambda a: (phantom(1).tissue_XYZ == 4).astype(np.uint8)),
            companions=CUT,
        ),
        "mask of the bones": PlantedFault(
            code="mask-content", corrupt=mask(lambda a: (phantom(1).tissue_XYZ == 3).astype(np.uint8)),
            companions=CUT,
        ),
        "mask on every second slice": PlantedFault(
            code="mask-gap", corrupt=mask(set_to((ALL, ALL, slice(1, None, 2)), 0)), companions=frozenset({"liver-volume"})
        ),
        "mask on every second sagittal plane": PlantedFault(
            code="mask-gap", corrupt=mask(set_to((slice(1, None, 2), ALL, ALL), 0)), companions=frozenset({"liver-volume"})
        ),
        "mask with every fourth slice left out": PlantedFault(
            code="mask-gap", corrupt=mask(set_to((ALL, ALL, slice(2, None, 4)), 0)), companions=frozenset({"liver-volume"})
        ),
        "mask without a layer below its surface": PlantedFault(
            code="mask-holes", corrupt=mask(lambda a: a - shrink_mask(a, 2600) + shrink_mask(a, 900)),
            companions=frozenset({"liver-volume"}),
        ),
        "mask without its tumour": PlantedFault(
            code="mask-holes", corrupt=mask(lambda a: a - shrink_mask(a, 1900)), companions=frozenset({"liver-volume"})
        ),
        "mask of 30 mL": PlantedFault(code="mask-tiny", corrupt=mask(lambda a: shrink_mask(a, 190))),
        **{
            f"liver cut off at the {name}": PlantedFault(
                code="mask-edge", corrupt=crop(axis, end), companions=frozenset({"liver-volume"})
            )
            for name, axis, end in (("left", 0, 0), ("right", 0, 1), ("back", 1, 0), ("front", 1, 1), ("bottom", 2, 0),
                                    ("top", 2, 1))
        },
        "liver of 4 litres": PlantedFault(code="liver-volume", corrupt=both(lambda a: a, scaled(1.5))),
        "liver of 300 mL": PlantedFault(code="liver-volume", corrupt=mask(lambda a: shrink_mask(a, 1900))),
        "liver of -20 HU": PlantedFault(
            code="liver-hu", corrupt=ct(in_place(lambda a: a.__setitem__(LIVER, (a[LIVER] - 98) // 4 - 15)))
        ),
        "CT and mask mirrored": PlantedFault(code="liver-left", corrupt=both(lambda a: a[::-1])),
        "CT without lungs": PlantedFault(
            code="liver-place", corrupt=ct(in_place(lambda a: a.__setitem__(phantom(1).tissue_XYZ == 4, 40)))
        ),
        "CT of a thigh: soft tissue around a bone": PlantedFault(code="liver-place", corrupt=both_of_a_thigh, companions=CUT),
        "neither table nor mask": PlantedFault(code="radiomics-missing", corrupt=without(MASK, TABLE)),
        "table in UTF-16": PlantedFault(code="radiomics-unreadable", corrupt=file(TABLE, lambda d: d.decode().encode("utf-16"))),
        "table of 1,780": PlantedFault(
            code="radiomics-columns",
            corrupt=file(TABLE, lambda d: b"".join(x.rpartition(b",")[0] + b"\n" for x in d.splitlines())),
        ),
        "table of two rows": PlantedFault(code="radiomics-rows", corrupt=file(TABLE, lambda d: d + d.splitlines()[1])),
        "table with infinity": PlantedFault(code="radiomics-value", corrupt=file(TABLE, lambda d: d.strip() + b"e999")),
        "table of another mask": PlantedFault(code="radiomics-differ", corrupt=lambda f: None, recompute=True),
        "table whose record names another CT": PlantedFault(code="radiomics-stale", corrupt=record_of_another_ct),
        "table edited after its record": PlantedFault(code="radiomics-stale", corrupt=edited_after_its_record),
        "mask of a line": PlantedFault(code="radiomics-mask", corrupt=mask(line), companions=TINY, recompute=True),
        "voxel at the limit of int16": PlantedFault(
            code="radiomics-failed", corrupt=ct(one_voxel_of(-32768)), recompute=True
        ),
        "no record": PlantedFault(code="clinical-missing", corrupt=without(RECORD)),
        "record cut off": PlantedFault(code="clinical-malformed", corrupt=file(RECORD, lambda d: d[:40])),
        "record of deep nesting": PlantedFault(code="clinical-malformed", corrupt=file(RECORD, lambda d: b"[" * 100_000)),
        "unknown field": PlantedFault(code="clinical-unknown-field", corrupt=values(blood_of_dragons=7)),
        "text for a number": PlantedFault(code="clinical-type", corrupt=values(albumin="low")),
        "unknown unit": PlantedFault(code="clinical-unit", corrupt=values(albumin={"value": 4, "unit": "stone"})),
        "albumin in g/dL": PlantedFault(code="clinical-unit-suspect", corrupt=values(albumin=3.8)),
        "creatinine in mg/dL": PlantedFault(code="clinical-unit-suspect", corrupt=values(creatinine=0.9)),
        "cholesterol in mg/dL": PlantedFault(code="clinical-unit-suspect", corrupt=values(cholesterol=190)),
        "height in metres": PlantedFault(code="clinical-unit-suspect", corrupt=values(height=1.7)),
        "g/L said to be g/dL": PlantedFault(
            code="clinical-unit-suspect", corrupt=values(haemoglobin={"value": 140, "unit": "g/dL"})
        ),
        "bilirubin in mg/dL": PlantedFault(code="clinical-unit-doubt", corrupt=values(total_bilirubin=0.7)),
        "mistyped": PlantedFault(code="clinical-range", corrupt=values(bmi=240)),
        "negative": PlantedFault(code="clinical-range", corrupt=values(alt=-3)),
        "record of another patient": PlantedFault(code="patient-mismatch", corrupt=copy(RECORD)),
        "record without a value": PlantedFault(code="clinical-incomplete", corrupt=record_with(0)),
        "record of values that are null": PlantedFault(code="clinical-incomplete", corrupt=record_of_nulls),
        "record with a short report": PlantedFault(
            code="clinical-incomplete",
            corrupt=lambda f: (f / RECORD).write_text('{"patient_id": "P1", "values": {}, "report": "Child-Pugh B."}'),
        ),
        "record of five values": PlantedFault(code="clinical-incomplete", corrupt=record_with(5)),
        "report of 400 words": PlantedFault(code="clinical-truncated", corrupt=report_of("no ascites, patent vein; " * 100)),
        "blood date of another form": PlantedFault(code="clinical-date", corrupt=blood_date_of("3.5.2021")),
        "blood date without separators": PlantedFault(code="clinical-date", corrupt=blood_date_of("03052021")),
        "blood date of the 30th of February": PlantedFault(code="clinical-date", corrupt=blood_date_of("2021-02-30")),
        "blood a year before the CT": PlantedFault(code="dates-apart", corrupt=case_record(days_from_blood_to_ct=365)),
        "CT before the blood": PlantedFault(code="dates-apart", corrupt=case_record(days_from_blood_to_ct=-120)),
        "CT of another case": PlantedFault(
            code="duplicate-ct", corrupt=copy(CT), companions=frozenset()
        ),
        "CT of another case, stored with another type": PlantedFault(
            code="duplicate-ct", corrupt=lambda f: write_volume(f / CT, phantom(0).hu_XYZ.astype(np.int32))
        ),
        "table of another case": PlantedFault(code="duplicate-radiomics", corrupt=copy(TABLE)),
        "values of another patient": PlantedFault(code="duplicate-record", corrupt=copy_values),
    }
)  # fmt: skip
"""Name -> fault. At least one for every check of a case folder."""


VARIANTS: Mapping[str, PlantedFault] = MappingProxyType(
    {
        name: PlantedFault(code=None, corrupt=corrupt)
        for name, corrupt in {
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
                json.dumps({"patient_id": "P1", "values": {}, "report": "Child-Pugh B, no ascites. " * 5})
            ),
            "a voxel of metal": ct(one_voxel_of(30_710)),
            "metal of 40 voxels": ct(in_place(lambda a: a.__setitem__((slice(20, 30), slice(20, 24), 9), 30_710))),
            "a table with missing cells": file(TABLE, lambda d: d.rpartition(b",")[0] + b",\n"),
        }.items()
    }
)
"""Name -> an unusual but valid case: no check may find anything."""


@dataclass(frozen=True)
class Score:
    """Counts over the whole corpus."""

    faults: int
    found: int
    variants: int
    true: int
    false: int

    @property
    def recall(self) -> float:
        """Share of the faults that were found by their own code."""
        return self.found / self.faults

    @property
    def precision(self) -> float:
        """Share of the findings that belong to the fault: its code or a declared companion."""
        return self.true / (self.true + self.false)


def codes_of(plant: PlantedFault, good: Path, folder: Path) -> set[tuple[str, str]]:
    """(case, code) of the findings in a copy of the valid cohort with the fault planted."""
    cohort = Path(shutil.copytree(good, folder))
    plant.corrupt(cohort / "C1")
    cases = [c for c in open_cohort(cohort).cases if not plant.recompute or c.case_id == "C1"]
    findings = check_cases(cases, radiomics_tolerance=TOLERANCE if plant.recompute else None)
    shutil.rmtree(cohort)
    return {(f.case_id, f.code) for f in findings}


def score(found: Mapping[str, set[tuple[str, str]]]) -> Score:
    """Score of the findings, given for each name of `FAULTS` and `VARIANTS`."""
    hits = true = false = 0
    for name, codes in found.items():
        plant = FAULTS.get(name) or VARIANTS[name]
        hits += plant.code is not None and ("C1", plant.code) in codes
        expected = {("C1", c) for c in {plant.code, *plant.companions} if c}
        true, false = true + len(codes & expected), false + len(codes - expected)
    return Score(faults=len(FAULTS), found=hits, variants=len(VARIANTS), true=true, false=false)


def score_line(result: Score) -> str:
    """The line that docs/checks.md contains."""
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
        print(score_line(score({n: codes_of(p, good, Path(temporary) / "case") for n, p in plants.items()})))


if __name__ == "__main__":
    main()
