"""scikit-learn pipelines: stored arrays, LASSO selection, and what is fitted on which cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from factories.fold_arrays import IDS, SPLIT, changed, make_arrays
from factories.nano import nano
from factories.networks import ESTIMATORS, configured
from factories.small_fold import train_small
from tmi.toolkit.config.schema import N_RADIOMICS
from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.run_folder import FoldFolder
from tmi.training.evaluation.fold_inference import estimator_features
from tmi.training.systems import sklearn_arrays as estimator_arrays
from tmi.training.systems.factory import build_model
from tmi.training.systems.radiomics_pipeline import LassoSelection, fit


def threshold_cases(stored: dict[str, np.ndarray], case: np.ndarray) -> list[np.ndarray]:
    """Cases slightly above a tree's threshold, where float32 and float64 decide differently; empty for an svm."""
    cases = []
    part = "radiomics." if "radiomics.selected" in stored else ""
    boosted = "boosting.value" in stored  # its trees take the values as they are, in float64
    for node in np.flatnonzero(stored[f"{part}tree.leaf"] == 0)[:40] if f"{part}tree.leaf" in stored else ():
        feature, threshold = stored[f"{part}tree.feature"][node], stored[f"{part}tree.threshold"][node]
        above = case.copy()
        if boosted:
            above[feature] = threshold + 1e-10
        else:
            column = stored[f"{part}selected"][feature]
            value = (threshold + 1e-10 - stored[f"{part}shift"][column]) / stored[f"{part}scale"][column]
            above[len(case) - N_RADIOMICS + column if part else column] = value
        cases.append(above[None])
    return cases


def test_class_with_one_case_is_wrong_usage():
    """The inner folds of `svm` need two cases of each class; the error says so, and what to do."""
    features = make_arrays((8, 16, 16), seed=0).radiomics_NF
    labels = np.eye(1, len(features), dtype=np.int64)[0]
    with pytest.raises(UsageError, match=r"1 case of a class, too few for the inner folds") as error:
        fit(build_model(configured("system.name=svm")), features, labels)
    assert "--folds" in error.value.fix


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("seed", [0, 1])
def test_stored_arrays_match_sklearn(tmp_path, name, seed):
    """The stored arrays predict scikit-learn's probability to 1e-12 and hold numbers alone."""
    random = np.random.default_rng(seed)
    config, labels = configured(f"system.name={name}"), np.arange(len(IDS)) % 2
    train = estimator_features(config, make_arrays((8, 16, 16), seed=seed), IDS)
    model = fit(build_model(config), train, labels)
    estimator_arrays.save(estimator_arrays.as_arrays(model), tmp_path / "model.safetensors")
    stored = estimator_arrays.load(tmp_path / "model.safetensors")
    cases = random.normal(0, 30, (50, train.shape[1]))  # beyond the fitted range too
    cases[random.uniform(size=cases.shape) < 0.1] = np.nan
    cases = np.concatenate([train, cases, *threshold_cases(stored, train[0])])
    expected = model.predict_proba(cases)[:, 1]
    np.testing.assert_allclose(estimator_arrays.probability(stored, cases), expected, rtol=0, atol=1e-12)
    assert np.ptp(expected) > 0.02
    with safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
        assert all(file.get_tensor(key).dtype.kind in "fi" for key in sorted(file.keys()))


@pytest.mark.parametrize("part", ["clinical", "radiomics"])
def test_late_fusion_is_the_mean_of_both_parts(part):
    """Half of the late fusion's probability is its part's own, fitted on that part's columns alone."""
    config, labels = configured("system.name=late-fusion"), np.arange(len(IDS)) % 2
    arrays = make_arrays((8, 16, 16))
    both = estimator_arrays.as_arrays(fit(build_model(config), estimator_features(config, arrays, IDS), labels))
    names = {"clinical": "logreg", "radiomics": "rf"}
    single = {}
    for modality, name in names.items():
        alone = configured(f"system.name={name}")
        features = estimator_features(alone, arrays, IDS)
        single[modality] = fit(build_model(alone), features, labels).predict_proba(features)[:, 1]
    fused = estimator_arrays.probability(both, estimator_features(config, arrays, IDS))
    other = single["radiomics" if part == "clinical" else "clinical"]
    np.testing.assert_allclose(2.0 * fused - other, single[part], rtol=0, atol=1e-12)


def test_number_of_features_that_a_stored_model_reads():
    """`metrics.json` states how many features a model reads: those of both parts, or those of a boosting's splits."""
    config, labels = configured("system.name=boosting"), np.arange(len(IDS)) % 2
    features = estimator_features(config, make_arrays((8, 16, 16)), IDS)
    stored = estimator_arrays.as_arrays(fit(build_model(config), features, labels))
    used = np.flatnonzero([_reads(stored, features, column) for column in range(features.shape[1])])
    assert 1 <= len(used) <= estimator_arrays.selected_features(stored) < 200
    fused = {"clinical.selected": np.arange(4), "radiomics.selected": np.arange(3), "radiomics.median": np.zeros(9)}
    assert estimator_arrays.selected_features(fused) == 7


def _reads(stored: dict[str, np.ndarray], features: np.ndarray, column: int) -> bool:
    other = features.copy()
    other[:, column] = -1e6
    return not np.array_equal(
        estimator_arrays.probability(stored, other), estimator_arrays.probability(stored, features)
    )


def test_invalid_array_file_is_damaged(tmp_path):
    """A file that is not safetensors, such as a pickle, is a DamagedError."""
    (tmp_path / "model.safetensors").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(DamagedError, match="cannot be read"):
        estimator_arrays.load(tmp_path / "model.safetensors")


class SelectsNothing:
    """A LASSO whose cross-validation prefers the mean."""

    def __init__(self, **_: object) -> None:
        self.coef_ = np.zeros(30)

    def fit(self, X, y):
        return self


def test_lasso_selects_at_least_one_feature(monkeypatch):
    """The LASSO selects an informative feature, and that one too if its cross-validation prefers the mean."""
    random = np.random.default_rng(0)
    labels = np.arange(40) % 2
    noise = random.normal(size=(40, 30))
    features = noise.copy()
    features[:, 11] = labels + random.normal(0, 0.1, 40)
    assert LassoSelection().fit(features, labels).get_support()[11]
    monkeypatch.setattr("tmi.training.systems.radiomics_pipeline.LassoCV", SelectsNothing)
    np.testing.assert_array_equal(np.flatnonzero(LassoSelection().fit(features, labels).get_support()), [11])


def train(folder: Path, name: str, arrays: object) -> FoldFolder:
    return train_small(folder, arrays, configured(f"system.name={name}"), SPLIT)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimator_is_fitted_on_training_part(tmp_path, name):
    """The stored model changes with a training case and not with a validation or held-out case."""
    arrays = make_arrays(nano().ct.shape_DHW)
    unchanged = train(tmp_path / "unchanged", name, arrays)
    for part, same in ((SPLIT.test, True), (SPLIT.validation, True), (SPLIT.train[:1], False)):
        other = train(tmp_path / part[0], name, changed(arrays, part))
        assert (other.model.read_bytes() == unchanged.model.read_bytes()) == same, part[0]
    assert {p.name for p in unchanged.folder.iterdir()} == {
        "history.csv", "machine.json", "metrics.json", "model.safetensors", "predictions.csv", "scaler.json",
        "tokenizer.json", "validation.csv",
    }  # fmt: skip
