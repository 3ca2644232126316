"""Sample synthetic persons and their clinical records, in the fields and units of the packaged clinical schema.

Laboratory value j of a case is sampled from the case's standardised blood signal u (variance 1,
`tmi.toolkit.synthetic.generative_model`):

    v_j = lambda_j u + sqrt(1 - lambda_j^2) e_j,   e_j ~ N(0, 1),
    value = median * exp(scale * v_j) if the distribution is log-normal, else median + scale * v_j.

Sex, age, build, aetiology and the fat analysis are independent of the severity. Single fields and whole panels are
missing at random. Medians and scales are plausible for a hepatology clinic; they were not derived from patients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from tmi.toolkit.synthetic.phantom import Body

REMARK = "Synthetic record of a phantom, not of a person."


@dataclass(frozen=True)
class ValueDistribution:
    """Distribution of a laboratory value, in the schema's unit."""

    median: float
    """Median."""
    scale: float
    """Standard deviation; of the logarithm if `log`."""
    loading: float = 0.0
    """lambda: correlation with the blood signal; positive if the value increases with severity."""
    digits: int = 1
    """Number of reported decimals."""
    log: bool = True
    """Whether the distribution is log-normal; otherwise it is normal."""


BLOOD: Mapping[str, ValueDistribution] = MappingProxyType(
    {
        "wbc": ValueDistribution(0.7, 0.30, 0.0, 1),
        "rbc": ValueDistribution(4.3, 0.55, -0.35, 2, log=False),
        "haemoglobin": ValueDistribution(130.0, 17.0, -0.40, 0, log=False),
        "platelets": ValueDistribution(150.0, 0.42, -0.65, 0),
        "neutrophils": ValueDistribution(3.1, 0.40, 0.0, 1),
        "lymphocytes": ValueDistribution(1.5, 0.38, -0.35, 1),
        "alt": ValueDistribution(38.0, 0.55, 0.20, 0),
        "ast": ValueDistribution(42.0, 0.50, 0.50, 0),
        "alp": ValueDistribution(100.0, 0.38, 0.30, 0),
        "ggt": ValueDistribution(62.0, 0.70, 0.30, 0),
        "total_protein": ValueDistribution(31.0, 4.5, 0.25, 0, log=False),
        "albumin": ValueDistribution(38.0, 4.8, -0.75, 0, log=False),
        "total_bilirubin": ValueDistribution(11.0, 0.45, 0.55, 1),
        "direct_bilirubin": ValueDistribution(6.5, 0.65, 0.65, 1),
        "bile_acid": ValueDistribution(14.0, 0.80, 0.60, 1),
        "cholinesterase": ValueDistribution(5600.0, 1300.0, -0.70, 0, log=False),
        "triglycerides": ValueDistribution(1.1, 0.40, -0.20, 2),
        "cholesterol": ValueDistribution(0.55, 0.30, 0.0, 2),
        "hdl": ValueDistribution(1.15, 0.22, -0.20, 2, log=False),
        "ldl": ValueDistribution(2.4, 0.55, -0.30, 2, log=False),
        "urea": ValueDistribution(5.4, 0.30, 0.0, 1),
        "creatinine": ValueDistribution(70.0, 0.25, 0.0, 0),
        "cystatin_c": ValueDistribution(0.98, 0.22, 0.25, 2),
    }
)
"""Field name -> distribution of the 23 blood items. For the four sums of `PARTS`: distribution of the remainder."""

PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "wbc": ("neutrophils", "lymphocytes"),
        "total_protein": ("albumin",),
        "total_bilirubin": ("direct_bilirubin",),
        "cholesterol": ("hdl", "ldl"),
    }
)
"""Sum -> its reported parts; a sum and its parts are measured, and missing, together."""

PANELS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "lipids": ("triglycerides", "cholesterol", "hdl", "ldl"),
        "special chemistry": ("bile_acid", "cholinesterase", "cystatin_c"),
    }
)
"""Further items that are ordered together, and missing together."""
PANEL_MISSING, FIELD_MISSING, FAT_MISSING, PERSON_MISSING = 0.20, 0.04, 0.15, 0.05
"""Probabilities that a panel, a single item, the fat analysis, or one of age, height, weight, aetiology is missing."""

AETIOLOGIES: Mapping[str, float] = MappingProxyType(
    {"hepatitis B": 0.45, "alcohol": 0.20, "hepatitis C": 0.15, "steatotic": 0.12, "unknown": 0.08}
)
"""Aetiology -> fraction of the patients."""


@dataclass(frozen=True, kw_only=True)
class Person:
    """Properties of a patient that do not change between visits."""

    sex: str
    """`female` or `male`."""
    age: int
    """Years."""
    height: float
    """cm."""
    weight: float
    """kg."""
    aetiology: str
    """One of `AETIOLOGIES`."""

    @property
    def bmi(self) -> float:
        """Body mass index in kg/m2."""
        return self.weight / (self.height / 100.0) ** 2


def sample_person(rng: np.random.Generator) -> Person:
    """Sample a patient, independently of the severity."""
    female = bool(rng.random() < 0.35)
    height = float(np.clip(rng.normal(162.0 if female else 174.0, 6.5), 145.0, 198.0))
    bmi = float(np.clip(rng.normal(25.0, 3.8), 17.5, 38.0))
    return Person(
        sex="female" if female else "male",
        age=int(np.clip(rng.normal(57.0, 11.0), 22, 86)),
        height=round(height, 0),
        weight=round(bmi * (height / 100.0) ** 2, 1),
        aetiology=str(rng.choice(list(AETIOLOGIES), p=list(AETIOLOGIES.values()))),
    )


def sample_available_items(rng: np.random.Generator) -> frozenset[str]:
    """Sample the names of the blood items that a case has."""
    missing = {name for items in PANELS.values() if rng.random() < PANEL_MISSING for name in items}
    for name, u in zip(BLOOD, rng.random(len(BLOOD)), strict=True):
        if u < FIELD_MISSING and not any(name in parts for parts in PARTS.values()):
            missing |= {name, *PARTS.get(name, ())}
    return frozenset(BLOOD) - missing


def information(available: frozenset[str]) -> float:
    """Return I = sum lambda^2 / (1 - lambda^2), the precision at which these items determine the blood signal."""
    return sum(d.loading**2 / (1.0 - d.loading**2) for name, d in BLOOD.items() if name in available)


def sample_information(rng: np.random.Generator, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Sample I over the missing items, for `tmi.toolkit.synthetic.generative_model.auc_ceilings`."""
    return np.array([information(sample_available_items(rng)) for _ in range(count)])


@dataclass(frozen=True, kw_only=True)
class BloodSample:
    """The laboratory values of one case."""

    values: Mapping[str, float]
    """Reported values of the available items, in the schema's units."""
    scores: Mapping[str, float]
    """Scores v_j of the same items."""

    def observation(self) -> tuple[float, float]:
        """Return the precision-weighted estimate of the blood signal u, and its precision I."""
        total = information(frozenset(self.scores))
        if total == 0.0:
            return 0.0, 0.0
        # v_j / lambda_j estimates u with precision lambda_j^2 / (1 - lambda_j^2)
        weighted = sum(v * BLOOD[n].loading / (1.0 - BLOOD[n].loading ** 2) for n, v in self.scores.items())
        return weighted / total, total


def sample_blood(rng: np.random.Generator, blood: float) -> BloodSample:
    """Sample laboratory values given the standardised blood signal."""
    available = sample_available_items(rng)
    noise = rng.normal(size=len(BLOOD))
    values, scores = {}, {}
    for (name, d), e in zip(BLOOD.items(), noise, strict=True):
        if name in available:
            score = d.loading * blood + math.sqrt(1.0 - d.loading**2) * float(e)
            score = min(max(score, -3.5), 3.5)
            value = d.median * math.exp(d.scale * score) if d.log else d.median + d.scale * score
            values[name], scores[name] = round(value, d.digits), score
    # a sum is the sampled remainder plus its reported parts, so that the two are consistent
    for name, parts in PARTS.items():
        if name in values:
            values[name] = round(values[name] + sum(values[p] for p in parts), BLOOD[name].digits)
    return BloodSample(values=values, scores=scores)


def fat_analysis(rng: np.random.Generator, body: Body) -> dict[str, float]:
    """Return the 16 values of the fat analysis, computed from the ellipse areas of the body over 200 mm of height.

    They are computed from `Body` and not measured in the rendered phantom, where organs grow with the severity.
    """
    wall = (body.half_width_mm - body.fat_mm, body.half_depth_mm - 0.8 * body.fat_mm)
    inner = (wall[0] - body.muscle_mm, wall[1] - body.muscle_mm)
    outer_cm2, wall_cm2, inner_cm2 = (
        math.pi * a * b / 100.0 for a, b in ((body.half_width_mm, body.half_depth_mm), wall, inner)
    )
    depots = {
        "sat": (outer_cm2 - wall_cm2, 88.0),
        "imat": ((wall_cm2 - inner_cm2) * 0.08, 62.0),
        "vat": (inner_cm2 * (0.10 + 0.008 * body.fat_mm), 80.0),
        "soft_tissue": (wall_cm2 - inner_cm2, 9.0),
    }
    values = {}
    for depot, (area, percentage) in depots.items():
        area *= math.exp(rng.normal(0, 0.08))
        values[f"{depot}_volume"] = round(area * 20.0 * math.exp(rng.normal(0, 0.04)), 1)
        values[f"{depot}_area"] = round(area, 1)
        values[f"{depot}_volume_fraction"] = round(float(np.clip(percentage + rng.normal(0, 3), 2, 97)), 1)
        values[f"{depot}_area_fraction"] = round(float(np.clip(percentage + rng.normal(0, 3), 2, 97)), 1)
    return values


def sample_record(
    rng: np.random.Generator, *, patient_id: str, person: Person, body: Body, blood: float
) -> tuple[dict[str, Any], BloodSample]:
    """Sample the content of a case's `clinical.json`, and return it with its laboratory values.

    A missing value is null in some records and absent in others. Some records give total bilirubin in mg/dL and
    albumin in g/dL. The free text, if any, states that the record is synthetic.
    """
    sample = sample_blood(rng, blood)
    person_values: dict[str, Any] = {
        "sex": person.sex,
        "age": person.age,
        "height": person.height,
        "weight": person.weight,
        "bmi": round(person.bmi, 1),
        "aetiology": person.aetiology,
    }
    for name in ("age", "height", "weight", "aetiology"):
        if rng.random() < PERSON_MISSING:
            person_values[name] = None
    values = person_values | {name: sample.values.get(name) for name in BLOOD}
    fat = fat_analysis(rng, body)
    values |= dict.fromkeys(fat) if rng.random() < FAT_MISSING else fat
    if rng.random() < 0.5:
        values = {name: value for name, value in values.items() if value is not None}
    if rng.random() < 0.15:
        _convert_units(values)
    report = REMARK if rng.random() < 0.35 else None
    return {"patient_id": patient_id, "values": values, "report": report}, sample


def _convert_units(values: dict[str, Any]) -> None:
    """Convert total bilirubin to mg/dL (17.104 umol/L) and albumin to g/dL, with enough decimals to be lossless."""
    if values.get("total_bilirubin") is not None:
        values["total_bilirubin"] = {"value": round(values["total_bilirubin"] / 17.104, 3), "unit": "mg/dL"}
    if values.get("albumin") is not None:
        values["albumin"] = {"value": round(values["albumin"] / 10.0, 2), "unit": "g/dL"}
