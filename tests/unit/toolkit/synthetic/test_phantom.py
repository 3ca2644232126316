"""Phantom: plausible, reproducible, and each signal affects only its own tissues."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tmi.toolkit.config.presets import tiny
from tmi.toolkit.imaging.ct_resampling import prepare_ct
from tmi.toolkit.imaging.volume import Volume
from tmi.toolkit.radiomics.extractor import extract
from tmi.toolkit.synthetic.clinical_record import BLOOD, sample_blood
from tmi.toolkit.synthetic.cohort import plan_cohort
from tmi.toolkit.synthetic.generative_model import LatentSeverityModel, sample_signals
from tmi.toolkit.synthetic.phantom import (
    DEPOSIT_FLOOR_HU,
    LABELS,
    Body,
    Grid,
    Phantom,
    disease_signs,
    render,
    sample_body,
    sample_grid,
)


def build(seed: int = 4, bmi: float = 24.0) -> tuple[Body, Grid]:
    rng = np.random.default_rng(seed)
    body = sample_body(rng, female=True, bmi=bmi)
    return body, sample_grid(rng, body)


def phantom(*, liver: float = 0.0, portal: float = 0.0, deposit: float = 0.0, seed: int = 4) -> Phantom:
    body, grid = build(seed)
    signs = disease_signs(liver=liver, portal=portal, deposit=deposit)
    return render(body, signs, grid, seed=np.random.SeedSequence(seed))


def volume(array_XYZ: np.ndarray, grid: Grid) -> Volume:
    affine = np.diag([*grid.spacing_XYZ_mm, 1.0])
    return Volume(array_DHW=np.ascontiguousarray(array_XYZ.transpose(2, 1, 0)), affine_xyz=affine)


def litres(p: Phantom, tissue: str, grid: Grid) -> float:
    return float((p.tissue_XYZ == LABELS[tissue]).sum() * math.prod(grid.spacing_XYZ_mm) / 1e6)


def surface_per_volume(mask: np.ndarray) -> float:
    """Return the number of boundary faces per voxel^(2/3); high for a nodular surface."""
    faces = sum(int(np.diff(mask.astype(np.int8), axis=axis).astype(bool).sum()) for axis in range(3))
    return faces / mask.sum() ** (2 / 3)


def test_phantom_is_deterministic():
    """The same arguments give the same voxels; another seed gives other voxels."""
    body, grid = build()
    signs = disease_signs(liver=0.0, portal=0.0, deposit=0.0)
    one, same, other = (render(body, signs, grid, seed=np.random.SeedSequence(s)) for s in (1, 1, 2))
    assert np.array_equal(one.hu_XYZ, same.hu_XYZ)
    assert np.array_equal(one.liver_XYZ, same.liver_XYZ)
    assert not np.array_equal(one.hu_XYZ, other.hu_XYZ)


@pytest.mark.parametrize("seed", range(6))
def test_tissues_have_plausible_attenuation_and_size(seed):
    """Tissues have plausible attenuations and volumes, and the body fits the field of view."""
    rng = np.random.default_rng(seed)
    body = sample_body(rng, female=bool(seed % 2), bmi=float(rng.uniform(18, 37)))
    grid = sample_grid(rng, body)
    p = render(body, disease_signs(liver=0.5, portal=0.5, deposit=0.5), grid, seed=np.random.SeedSequence(seed))
    median = {name: np.median(p.hu_XYZ[p.tissue_XYZ == code]) for name, code in LABELS.items() if name != "deposit"}
    assert median["air"] < -950
    assert -115 < median["fat"] < -85
    assert 30 < median["muscle"] < 70
    assert 75 < median["liver"] < 115
    assert median["spleen"] > median["liver"]
    assert median["bone"] > 150
    assert median["lung"] < -700
    assert 0.8 < p.liver_XYZ.sum() * math.prod(grid.spacing_XYZ_mm) / 1e6 < 2.0
    assert 6_000 < p.liver_XYZ.sum() < 20_000
    assert 0.08 < litres(p, "spleen", grid) < 0.6
    nx, ny, nz = grid.shape_XYZ
    assert 64 <= nx == ny <= 96
    assert 24 <= nz <= 40
    x_left, x_right = np.flatnonzero((p.tissue_XYZ > 0).any(axis=(1, 2)))[[0, -1]]
    assert x_left > 0, "the body is not cut by the field of view"
    assert x_right < nx - 1, "the body is not cut by the field of view"


def test_spacing_is_anisotropic_and_varies():
    """Slices are thicker than pixels, and spacings differ between cases."""
    spacings = {build(seed)[1].spacing_XYZ_mm for seed in range(12)}
    assert len(spacings) > 8
    assert all(z > 1.15 * x for x, _, z in spacings)


def test_liver_is_right_and_spleen_left():
    """The liver lies on the patient's right and the spleen on the left."""
    p = phantom()
    middle = p.liver_XYZ.shape[0] / 2
    assert np.argwhere(p.liver_XYZ)[:, 0].mean() > middle + 5
    assert np.argwhere(p.tissue_XYZ == LABELS["spleen"])[:, 0].mean() < middle - 10


def test_liver_signal_changes_the_liver():
    """The liver signal changes attenuation, texture, surface and size of the liver only."""
    _, grid = build()
    mild, severe = phantom(liver=-2.0), phantom(liver=2.0)
    tissue = [p.hu_XYZ[p.tissue_XYZ == LABELS["liver"]] for p in (mild, severe)]
    assert np.median(tissue[0]) - np.median(tissue[1]) > 25
    assert tissue[1].std() > 1.2 * tissue[0].std()
    assert surface_per_volume(severe.liver_XYZ) > 1.08 * surface_per_volume(mild.liver_XYZ)
    assert severe.liver_XYZ.sum() < 0.95 * mild.liver_XYZ.sum()
    assert litres(mild, "spleen", grid) == litres(severe, "spleen", grid)


def test_portal_signal_grows_spleen_and_ascites():
    """Spleen and ascites grow with the portal signal."""
    _, grid = build()
    steps = [phantom(portal=v) for v in (-2.0, 0.0, 2.0)]
    spleens = [litres(p, "spleen", grid) for p in steps]
    assert spleens[0] < 0.7 * spleens[1]
    assert spleens[1] < 0.7 * spleens[2]
    assert [litres(p, "ascites", grid) > 0 for p in steps] == [False, False, True]


@pytest.mark.parametrize("seed", [3, 10])
def test_portal_signal_does_not_affect_radiomics(seed):
    """The portal signal changes no voxel near the liver and no feature."""
    _, grid = build(seed)
    low, high = phantom(portal=-3.0, seed=seed), phantom(portal=3.0, seed=seed)
    assert np.array_equal(low.liver_XYZ, high.liver_XYZ)
    changed = np.argwhere(low.hu_XYZ != high.hu_XYZ)[:, 0].max()
    assert (np.argwhere(low.liver_XYZ)[:, 0].min() - changed) * grid.spacing_XYZ_mm[0] > 30.0
    features = [extract(volume(p.hu_XYZ, grid), volume(p.liver_XYZ, grid)) for p in (low, high)]
    np.testing.assert_allclose(features[0], features[1], rtol=1e-5, atol=1e-6)


def test_deposit_signal_does_not_affect_ct_input():
    """The deposit signal changes the liver's HU but not the windowed CT input."""
    _, grid = build()
    low, high = phantom(deposit=-3.0), phantom(deposit=3.0)
    inputs = [prepare_ct(volume(p.hu_XYZ, grid), tiny().ct) for p in (low, high)]
    assert np.array_equal(inputs[0], inputs[1])
    assert np.array_equal(low.liver_XYZ, high.liver_XYZ)
    bright = [p.hu_XYZ[p.tissue_XYZ == LABELS["deposit"]] for p in (low, high)]
    assert bright[0].min() >= DEPOSIT_FLOOR_HU
    assert bright[1].mean() > 1.5 * bright[0].mean()


def test_every_modality_is_predictive_within_its_ceiling():
    """Logistic regression on simple features of 80 coarse cases: each modality is predictive, all together more so."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = LatentSeverityModel()
    features: dict[str, list[list[float]]] = {"ct": [], "radiomics": [], "clinical": []}
    plans = plan_cohort(80, 3, model)
    for plan in plans:
        rng = np.random.default_rng([3, plan.index])
        signals = sample_signals(rng, plan.patient.severity, model)
        pixel = plan.patient.body.half_width_mm * 2.06 / 48
        grid = Grid(shape_XYZ=(48, 48, 22), spacing_XYZ_mm=(pixel, pixel, 9.4), noise_hu=10.0, deposit_part=0.02)
        signs = disease_signs(**{k: model.standardized(k, getattr(signals, k)) for k in ("liver", "portal", "deposit")})
        p = render(plan.patient.body, signs, grid, seed=np.random.SeedSequence([3, plan.index]))
        ct = prepare_ct(volume(p.hu_XYZ, grid), tiny().ct)[0]
        left, right = ct[:, :, :20], ct[:, :, 28:]
        features["ct"].append([left.mean(), (left > 0.85).mean(), float(np.median(right[right > 0.6]))])
        inside = p.hu_XYZ[p.liver_XYZ].astype(float)
        features["radiomics"].append([math.log((inside**2).mean()), float(np.median(inside)), math.log(inside.max())])
        scores = sample_blood(rng, model.standardized("blood", signals.blood)).scores
        features["clinical"].append([scores.get(name, 0.0) for name, d in BLOOD.items() if abs(d.loading) > 0.5])
    bad, patients = [p.patient.bad for p in plans], [p.patient.patient_id for p in plans]
    features["all"] = [a + b + c for a, b, c in zip(*features.values(), strict=True)]
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    learner = make_pipeline(StandardScaler(), LogisticRegression(C=0.1))
    auc = {
        name: roc_auc_score(
            bad, cross_val_predict(learner, rows, bad, groups=patients, cv=folds, method="decision_function")
        )
        for name, rows in features.items()
    }
    assert all(0.68 < auc[name] < 0.92 for name in ("ct", "radiomics", "clinical")), auc
    assert auc["all"] > 0.85, auc
