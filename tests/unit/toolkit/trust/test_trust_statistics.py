"""Trust statistics: Mahalanobis distances, their file, and p-values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from factories.nano import nano
from factories.trust import random_trust
from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.trust import (
    FoldTrust,
    PartStatistics,
    assess,
    case_parts,
    require_level,
    summarise,
    volume_statistics,
)
from tmi.training.evaluation.trust_fitting import fit_part


def test_distance_is_mahalanobis():
    """With every direction kept, D d^2 is the Mahalanobis distance of the standardised numbers."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(5, 5))
    covariance = mixing @ mixing.T + np.eye(5)
    variances, vectors = np.linalg.eigh(covariance)
    part = PartStatistics(
        mean_D=np.full(5, 2.0), scale_D=np.full(5, 3.0), directions_KD=vectors.T, variances_K=variances, residual=1.0
    )
    x = rng.normal(size=(7, 5))
    z = (x - 2.0) / 3.0
    expected = np.einsum("nd,de,ne->n", z, np.linalg.inv(covariance), z)
    assert 5 * part.distances(x) ** 2 == pytest.approx(expected)


def test_missing_number_has_no_distance():
    """A missing number counts as the mean; one that no training case has (infinite scale) counts as nothing."""
    part = PartStatistics(
        mean_D=np.zeros(2),
        scale_D=np.array([1.0, np.inf]),
        directions_KD=np.zeros((0, 2)),
        variances_K=np.zeros(0),
        residual=1.0,
    )
    assert part.distances(np.array([[np.nan, 9.0], [2.0, np.nan]])).tolist() == [0.0, pytest.approx(np.sqrt(2.0))]


def test_file_gives_the_same_scores(tmp_path):
    """A read file has the statistics that were written, and equal statistics give equal bytes."""
    trust = random_trust(nano(), 1)
    trust.save(tmp_path / "a")
    trust.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    read = FoldTrust.load(tmp_path / "a", fold=1)
    parts = {name: np.random.default_rng(3).normal(size=(4, len(p.mean_D))) for name, p in trust.parts.items()}
    for name, scores in trust.scores(parts).items():
        assert read.scores(parts)[name].tolist() == scores.tolist()
        assert read.calibration[name].tolist() == trust.calibration[name].tolist()


def test_file_holds_no_case(tmp_path):
    """The scores of held-out cases are sorted, and no direction is a training case's."""
    trust = random_trust(nano(), 0)
    assert all((np.diff(scores) >= 0).all() for scores in trust.calibration.values())
    assert max(len(part.variances_K) for part in trust.parts.values()) <= trust.fitted_on // 4


def test_statistics_of_another_fold_are_rejected(tmp_path):
    """A file states its fold."""
    random_trust(nano(), 1).save(tmp_path / "trust")
    with pytest.raises(DamagedError, match="those of fold 1, not of fold 0"):
        FoldTrust.load(tmp_path / "trust", fold=0)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: data[:-9],
        lambda data: data.replace(b"tmi-trust/2", b"tmi-trust/9"),
        lambda data: data.replace(b"image.encoder.mean", b"image.encoder.neam"),
        lambda data: data[:-8] + np.array([np.nan]).tobytes(),
    ],
)
def test_malformed_file_is_rejected(tmp_path: Path, change):
    """Truncated, of another schema, without a part, or with a number that is none."""
    random_trust(nano(), 0).save(tmp_path / "trust")
    (tmp_path / "trust").write_bytes(change((tmp_path / "trust").read_bytes()))
    with pytest.raises(DamagedError, match="missing or malformed"):
        FoldTrust.load(tmp_path / "trust", fold=0)


def fold_with(scores: list[float]) -> FoldTrust:
    return FoldTrust(
        fold=0,
        fitted_on=20,
        parts={},
        calibration={"image": np.sort(np.array(scores)), "joint": np.sort(np.array(scores))},
    )


def test_p_value_counts_the_held_out_cases():
    """P = (1 + number of scores at least the case's, each by the fold that held its case out) / (n + 1)."""
    folds = [fold_with([1.0, 2.0, 3.0]), fold_with([10.0, 20.0])]
    trust = assess(folds, [{"image": 2.0, "joint": 2.5}, {"image": 15.0, "joint": 30.0}], level=0.4)
    assert trust.p_values == {"image": (1 + 2 + 1) / 6}
    assert (trust.p_value, trust.cases, trust.verdict) == ((1 + 1 + 0) / 6, 5, "not-trusted")
    assert assess(folds, [{"image": 2.0, "joint": 2.5}] * 2, level=0.4).verdict == "trusted"
    assert assess(folds, [{"image": 99.0, "joint": 99.0}] * 2, level=0.1).verdict == "too-few-cases"


def test_false_alarms_have_the_level():
    """Of cases of the training's law, a share of the level is not trusted."""
    rng = np.random.default_rng(5)
    alarms = 0
    for _ in range(300):
        folds = [fold_with(list(rng.normal(size=30))) for _ in range(3)]
        score = float(rng.normal())
        alarms += assess(folds, [{"joint": score}] * 3, level=0.1).verdict == "not-trusted"
    assert 15 <= alarms <= 45  # the binomial 99.5% interval of 30 of 300


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, float("nan")])
def test_level_is_a_probability(level):
    """A level that decides the same for every case is an error."""
    with pytest.raises(UsageError, match="no probability"):
        require_level(level)


def test_volume_statistics_see_orientation_noise_and_grid():
    """A flip, noise and another voxel size each change some number; an unknown grid is missing."""
    rng = np.random.default_rng(1)
    ramps = np.meshgrid(*(np.linspace(0, 1, size) for size in (8, 16, 16)), indexing="ij")
    ct = ((ramps[0] + 2 * ramps[1] + 3 * ramps[2]) / 6)[None].astype(np.float32)
    grid = np.array([8.0, 16.0, 16.0, 5.0, 0.8, 0.8])
    plain = volume_statistics(ct, grid)
    assert np.isfinite(plain).all()
    for other in (ct[:, ::-1], ct[:, :, ::-1], ct[..., ::-1], np.clip(ct + rng.normal(0, 0.1, ct.shape), 0, 1)):
        assert np.abs(volume_statistics(other, grid) - plain).max() > 0.02
    assert (volume_statistics(ct, grid * [1, 1, 1, 2, 1, 1]) - plain)[-3] == pytest.approx(np.log(2))
    assert np.isnan(volume_statistics(ct, None)[-6:]).all()


def test_unit_is_a_constant_shift():
    """A value in another unit moves by nearly the same amount, whatever its size."""
    numbers = np.array([[20.0], [200.0]])
    moved = case_parts(numbers_NV=17.1 * numbers)["clinical.values"] - case_parts(numbers_NV=numbers)["clinical.values"]
    assert moved.ravel() == pytest.approx([np.log(17.1)] * 2, abs=0.05)


def test_score_of_a_modality_is_its_strangest_part():
    """Modality and joint score are maxima; statistics without measurements are left out."""
    trust = random_trust(nano(), 0)
    parts = {name: np.zeros((1, len(p.mean_D))) for name, p in trust.parts.items()}
    scores = trust.scores(parts)
    by_part = {name: part.scores(parts[name])[0] for name, part in trust.parts.items()}
    assert scores["image"][0] == max(v for n, v in by_part.items() if n.startswith("image."))
    assert scores["joint"][0] == max(by_part.values())
    only = trust.scores({"radiomics.clipped": np.array([[0.5]])})
    assert set(only) == {"radiomics", "joint"}
    assert replace(trust, calibration={"joint": np.zeros(3)}).held_out == 3


def test_file_holds_calibration_scores_and_deciles(tmp_path):
    """Scores of the prediction sets and the summary are read as they were written; a file without them has none."""
    plain = replace(random_trust(nano(), 0), conformal={}, summary=None)
    summary = summarise({"clinical.age": np.array([40.0, 50.0, np.nan]), "prediction.bad": np.array([0.1, 0.2, 0.9])})
    replace(plain, conformal={"bad": np.array([2.0, 1.0]), "good": np.array([0.5])}, summary=summary).save(
        tmp_path / "t"
    )
    read = FoldTrust.load(tmp_path / "t", fold=0)
    assert {name: values.tolist() for name, values in read.conformal.items()} == {"bad": [1.0, 2.0], "good": [0.5]}
    assert read.summary.names == summary.names
    assert np.array_equal(read.summary.edges_SE, summary.edges_SE)
    plain.save(tmp_path / "plain")
    data = (tmp_path / "plain").read_bytes().replace(b"tmi-trust/2", b"tmi-trust/1")
    (tmp_path / "plain").write_bytes(data)
    old = FoldTrust.load(tmp_path / "plain", fold=0)
    assert (old.conformal, old.summary) == ({}, None)


def test_pattern_of_missing_fields_finds_what_their_number_does_not():
    """Half of the fields at random are stranger than a panel of as many fields that is often missing together."""
    rng = np.random.default_rng(2)
    missing = np.zeros((60, 40), bool)
    missing[:, :20] = (rng.uniform(size=60) < 0.2)[:, None]  # a panel
    missing |= rng.uniform(size=missing.shape) < 0.03
    panel, half = np.arange(40) < 20, rng.permutation(40) < 20
    numbers = [np.where(m, np.nan, 1.0) for m in (missing, np.array([panel, half]))]
    training, new = (case_parts(numbers_NV=n) for n in numbers)
    parts = {name: fit_part(name, training[name]) for name in ("clinical.missing", "clinical.pattern")}
    shares, distances = (parts[name].distances(new[name]) for name in parts)
    assert shares[0] == shares[1]
    assert distances[1] > 2 * distances[0]
