"""Trust statistics of a fold: fitted on its training cases alone, scored on its held-out cases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from factories.fold_arrays import IDS, SPLIT, changed, make_arrays
from factories.nano import nano
from tmi.toolkit.run_folder import FoldFolder
from tmi.toolkit.trust import FoldTrust
from tmi.training.data.fold_dataset import FoldDataset
from tmi.training.evaluation.prediction_tables import Predictions
from tmi.training.evaluation.trust_fitting import (
    conformal_scores,
    encoder_features,
    fit_part,
    fit_trust,
    write_trust,
)
from tmi.training.systems.factory import build_network


@pytest.fixture(scope="module")
def network():
    return build_network(nano(), seed=0)


def fitted(network, arrays, split=SPLIT) -> FoldTrust:
    data = FoldDataset(arrays, split, nano(), tokenizer=None)
    ids = (*split.train, *split.test)
    return fit_trust(arrays, data, encoder_features(network, data, ids, len(arrays.cases)))


def as_numbers(trust: FoldTrust) -> list[object]:
    return [(n, p.mean_D.tolist(), p.scale_D.tolist(), p.centre, p.spread) for n, p in sorted(trust.parts.items())]


def test_statistics_are_of_the_training_cases_alone(network):
    """Other held-out or validation cases change no statistic; the scores are the held-out cases'."""
    arrays = make_arrays(nano().ct.shape_DHW)
    trust = fitted(network, arrays)
    assert set(trust.parts) == {
        "image.encoder", "image.volume", "clinical.encoder", "clinical.values", "clinical.missing", "clinical.pattern",
        "radiomics.features", "radiomics.clipped",
    }  # fmt: skip
    assert (trust.fold, trust.fitted_on, trust.held_out) == (SPLIT.fold, len(SPLIT.train), len(SPLIT.test))
    others = fitted(network, changed(arrays, SPLIT.test))
    assert as_numbers(others) == as_numbers(trust)
    assert others.calibration["joint"].tolist() != trust.calibration["joint"].tolist()
    same = fitted(network, changed(arrays, SPLIT.validation))
    assert as_numbers(same) == as_numbers(trust)
    assert same.calibration["joint"].tolist() == trust.calibration["joint"].tolist()
    assert as_numbers(fitted(network, changed(arrays, SPLIT.train[:1]))) != as_numbers(trust)


def test_features_are_those_of_the_encoders(network):
    """Recorded features are the encoders' outputs in evaluation mode, by row of the cohort."""
    arrays = make_arrays(nano().ct.shape_DHW)
    data = FoldDataset(arrays, SPLIT, nano(), tokenizer=None)
    network.train()
    features = encoder_features(network, data, SPLIT.test, len(IDS))
    assert network.training
    network.eval()
    (_, batch), *_ = data.batches(SPLIT.test)
    expected = network.ct_encoder(batch.ct).detach().numpy()
    rows = arrays.rows(SPLIT.test)[: len(expected)]
    assert features["ct"][rows] == pytest.approx(expected, abs=1e-5)
    assert np.isnan(features["ct"][arrays.rows(SPLIT.train)]).all()


def test_small_fold_has_no_statistics(network, tmp_path):
    """Fewer than eight training cases give no file, and trust is then not assessed."""
    arrays = make_arrays(nano().ct.shape_DHW)
    files = FoldFolder.of(tmp_path, 0)
    files.folder.mkdir()
    small = replace(SPLIT, train=SPLIT.train[:7])
    options = {"validation": predictions(SPLIT.validation), "test": predictions(SPLIT.test), "temperature": 2.0}
    write_trust(network, arrays, FoldDataset(arrays, small, nano(), tokenizer=None), files, **options)
    assert not files.trust.exists()
    write_trust(network, arrays, FoldDataset(arrays, SPLIT, nano(), tokenizer=None), files, **options)
    trust = FoldTrust.load(files.trust, fold=SPLIT.fold)
    assert trust.fitted_on == len(SPLIT.train)
    logits, labels = options["validation"].logits_NK / 2.0, options["validation"].labels_N
    assert trust.conformal["bad"].tolist() == sorted((logits[:, 0] - logits[:, 1])[labels == 1])
    assert trust.conformal["good"].tolist() == sorted((logits[:, 1] - logits[:, 0])[labels == 0])
    names = dict(zip(trust.summary.names, trust.summary.counts_S.tolist(), strict=True))
    assert names["image.mean"] == names["clinical.missing"] == len(SPLIT.train)
    assert names["prediction.bad"] == names["radiomics.clipped"] == len(SPLIT.test)


def predictions(case_ids: tuple[str, ...]) -> Predictions:
    """Random predictions of alternating classes."""
    logits = np.random.default_rng(len(case_ids)).normal(size=(len(case_ids), 2))
    return Predictions(case_ids=case_ids, labels_N=np.arange(len(case_ids)) % 2, logits_NK=logits)


def test_released_protocol_has_no_calibration_scores():
    """Its validation split is the held-out fold, so that its scores would be those of held-out cases."""
    config = replace(nano(), train=replace(nano().train, protocol="released"))
    assert conformal_scores(config, predictions(SPLIT.validation), 1.0) == {}


def test_shrunk_covariance_is_scikit_learns():
    """Along the kept directions the variances are those of `sklearn.covariance.ledoit_wolf`; the trace is kept."""
    from sklearn.covariance import ledoit_wolf

    values = np.random.default_rng(2).normal(size=(40, 6)) * [5, 3, 2, 1, 1, 1] + 4
    part = fit_part("radiomics.features", values)
    z = (values - part.mean_D) / part.scale_D
    covariance, _ = ledoit_wolf(z)
    along = part.directions_KD @ covariance @ part.directions_KD.T
    assert np.diag(along) == pytest.approx(part.variances_K, rel=1e-4)
    total = part.variances_K.sum() + (6 - len(part.variances_K)) * part.residual
    assert total == pytest.approx(np.trace(covariance), rel=1e-4)


def test_precision_of_an_engine_is_no_distance():
    """Features that hardly vary between cases get a floor, so that rounding to bfloat16 moves no case far."""
    rng = np.random.default_rng(4)
    features = 1.0 + 1e-4 * rng.normal(size=(30, 64))
    part = fit_part("image.encoder", features)
    rounded = features * (1 + rng.uniform(-1, 1, features.shape) * 2.0**-8)
    assert part.distances(rounded).max() < part.distances(1.0 + 0.5 * rng.normal(size=(5, 64))).min() / 20
