"""How often is a shifted case found, and how often is a clean one called out of distribution by mistake?

Predicts clean cases of a cohort that the bundle was not trained on, the same cases with a synthetic shift each, and
real CTs if given. A case counts as found if a check rejects it or if it is not trusted at the level. Radiomics are
extracted again from a changed image. Prints a table and, as the last line, JSON.

    python benchmarks/trust_shifts.py BUNDLE CLEAN [--cases 20] [--level 0.05] [--real CT:MASK:LABEL ...]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.ndimage import binary_dilation
from scipy.stats import beta

from tmi.runtime import CaseArrays, Prediction, Predictor, RejectedCase
from tmi.runtime.serving.results import CaseResult
from tmi.toolkit.cases.case import Case, open_cohort
from tmi.toolkit.clinical.schema import Field, load_schema
from tmi.toolkit.radiomics.table import read_case_table

SEED = 19
ENHANCEMENT_HU, NOISE_HU, WINDOW_HU, SPACING = 60.0, 40.0, (-100, 200), 1.5
Shift = Callable[[CaseArrays, np.random.Generator], CaseArrays]


def read_arrays(case: Case) -> CaseArrays:
    """The files of a case as arrays."""
    # files of one case may differ in the order of their axes
    ct, mask = (nib.as_closest_canonical(nib.load(case.folder / f"{name}.nii.gz")) for name in ("ct", "liver"))
    return CaseArrays(
        case_id=case.case_id,
        ct_XYZ=np.asanyarray(ct.dataobj),
        affine_xyz=ct.affine,
        mask_XYZ=np.asanyarray(mask.dataobj),
        mask_affine_xyz=mask.affine,
        radiomics_F=read_case_table(case),
        record=json.loads((case.folder / "clinical.json").read_text()),
    )


def with_ct(case: CaseArrays, ct_XYZ: np.ndarray) -> CaseArrays:
    """Another CT; radiomics are extracted from it."""
    return replace(case, ct_XYZ=np.round(np.clip(ct_XYZ, -1024, 3071)).astype(np.int16), radiomics_F=None)


def window(case: CaseArrays, rng: np.random.Generator) -> CaseArrays:
    return with_ct(case, np.clip(case.ct_XYZ, *WINDOW_HU))


def contrast(case: CaseArrays, rng: np.random.Generator) -> CaseArrays:
    """Enhancement of the liver and, half as much, of all other soft tissue: another phase."""
    ct = case.ct_XYZ.astype(np.float32)
    soft = (ct > -20) & (ct < 150)
    return with_ct(case, ct + ENHANCEMENT_HU * np.where(case.mask_XYZ > 0, 1.0, np.where(soft, 0.5, 0.0)))


def noise(case: CaseArrays, rng: np.random.Generator) -> CaseArrays:
    return with_ct(case, case.ct_XYZ + rng.normal(0, NOISE_HU, case.ct_XYZ.shape))


def spacing(case: CaseArrays, rng: np.random.Generator) -> CaseArrays:
    """Voxel sizes of the header too large by one half."""
    affine = case.affine_xyz @ np.diag([SPACING, SPACING, SPACING, 1.0])
    return replace(case, affine_xyz=affine, mask_affine_xyz=affine, radiomics_F=None)


def flipped_mask(case: CaseArrays, rng: np.random.Generator) -> CaseArrays:
    return replace(case, mask_XYZ=case.mask_XYZ[::-1], radiomics_F=None)


def other_organ(case: CaseArrays, rng: np.random.Generator) -> CaseArrays:
    """The mask of a muscle or vessel beside the liver: soft tissue within three voxels of it."""
    liver = case.mask_XYZ > 0
    soft = (case.ct_XYZ > 0) & (case.ct_XYZ < 150)
    return replace(case, mask_XYZ=(binary_dilation(liver, iterations=3) & ~liver & soft), radiomics_F=None)


def wrong_unit(case: CaseArrays, rng: np.random.Generator) -> CaseArrays:
    """Bilirubin and creatinine in mg/dL, read as umol/L."""
    values = dict(case.record["values"])
    for field in unit_fields():
        if isinstance(values.get(field.name), (int, float)):
            factor = field.accepted_units["mg/dL"].factor
            values[field.name] = round(values[field.name] / factor, 2)
    return with_values(case, values)


def unit_fields() -> tuple[Field, ...]:
    names = ("total_bilirubin", "direct_bilirubin", "creatinine")
    return tuple(field for field in load_schema().fields if field.name in names)


def half_missing(case: CaseArrays, rng: np.random.Generator) -> CaseArrays:
    names = sorted(case.record["values"])
    dropped = set(rng.permutation(names)[: len(names) // 2])
    return with_values(case, {n: None if n in dropped else v for n, v in case.record["values"].items()})


def with_values(case: CaseArrays, values: dict[str, Any]) -> CaseArrays:
    return replace(case, record={**case.record, "values": values})


SHIFTS: dict[str, Shift] = {
    f"CT cut to {WINDOW_HU[0]} to {WINDOW_HU[1]} HU": window,
    f"liver {ENHANCEMENT_HU:.0f} HU brighter, other soft tissue half of it": contrast,
    f"noise of {NOISE_HU:.0f} HU": noise,
    f"voxel sizes times {SPACING:g}": spacing,
    "mask mirrored": flipped_mask,
    "mask of the tissue around the liver": other_organ,
    "bilirubin and creatinine in mg/dL read as umol/L": wrong_unit,
    "half of the fields missing": half_missing,
}


@dataclass
class Row:
    """Results of one kind of case."""

    name: str
    results: list[CaseResult]

    @property
    def rejected(self) -> int:
        return sum(isinstance(r, RejectedCase) for r in self.results)

    @property
    def predicted(self) -> list[Prediction]:
        return [r for r in self.results if isinstance(r, Prediction)]

    def alarms(self, level: float) -> int:
        return sum(r.trust.p_value <= level for r in self.predicted)

    def found(self, level: float) -> int:
        return self.rejected + self.alarms(level)

    def medians(self) -> dict[str, float]:
        names = self.predicted[0].trust.p_values if self.predicted else ()
        return {n: float(np.median([r.trust.p_values[n] for r in self.predicted])) for n in names}


def interval(count: int, n: int) -> tuple[float, float]:
    """Clopper and Pearson's 95% interval of a share."""
    low = 0.0 if count == 0 else float(beta.ppf(0.025, count, n - count + 1))
    return low, 1.0 if count == n else float(beta.ppf(0.975, count + 1, n - count))


def real_cases(words: list[str], record: dict[str, Any]) -> Iterator[CaseArrays]:
    """CTs of patients with the record of a synthetic case: each word names CT, label map and the liver's label."""
    for word in words:
        ct_path, mask_path, label = word.split(":")
        ct, mask = nib.load(ct_path), nib.load(mask_path)
        yield CaseArrays(
            case_id=Path(ct_path).name.partition(".")[0],
            ct_XYZ=np.asanyarray(ct.dataobj),
            affine_xyz=ct.affine,
            mask_XYZ=np.asanyarray(mask.dataobj).astype(np.int32),
            mask_affine_xyz=mask.affine,
            mask_label=int(label),
            record=record,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("clean", type=Path)
    parser.add_argument("--cases", type=int, default=20, help="cases of each shift; all clean ones are predicted")
    parser.add_argument("--level", type=float, default=0.05)
    parser.add_argument("--real", nargs="*", default=[])
    options = parser.parse_args()
    cases = open_cohort(options.clean).cases
    rows = []
    with Predictor.open(options.bundle, engine="onnx", trust_level=options.level) as predictor:
        rows.append(Row("clean cases", predictor.predict([case.folder for case in cases])))
        arrays = [read_arrays(case) for case in cases[: options.cases]]
        for name, shift in SHIFTS.items():
            rng = np.random.default_rng(SEED)
            rows.append(Row(name, [predictor.predict(shift(case, rng))[0] for case in arrays]))
        if options.real:
            record = {**arrays[0].record, "patient_id": None}
            rows.append(Row("CTs of patients", [predictor.predict(c)[0] for c in real_cases(options.real, record)]))
    print("| case | cases | rejected by a check | not trusted | found | median p-value: image, clinical, radiomics |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        n, level = len(row.results), options.level
        medians = ", ".join(f"{row.medians()[m]:.2f}" for m in ("image", "clinical", "radiomics") if row.predicted)
        low, high = interval(row.found(level), n)
        share = f"{row.found(level) / n:.2f} ({low:.2f} to {high:.2f})"
        print(f"| {row.name} | {n} | {row.rejected} | {row.alarms(level)} | {share} | {medians or '-'} |")
    document = {
        row.name: {
            "cases": len(row.results),
            "rejected": row.rejected,
            "not_trusted": row.alarms(options.level),
            "interval": interval(row.found(options.level), len(row.results)),
            "medians": row.medians(),
        }
        for row in rows
    }
    print(json.dumps({"level": options.level, **document}))


if __name__ == "__main__":
    main()
