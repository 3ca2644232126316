"""scikit-learn pipelines on the radiomics, fitted on the training part of a fold.

    median imputation -> scaling to [-1, 1], clipped -> removal of constant columns -> LASSO selection -> estimator

The LASSO penalty is chosen by stratified cross-validation inside the training part. If the LASSO selects no feature, or
a class has one case only, the feature that enters the LASSO path first is selected. `svm`: RBF kernel, balanced
classes; its probability is Platt's sigmoid of the decision value, fitted on out-of-fold decision values of the whole
pipeline. `rf`: balanced classes.
Sources: S. Mukherjee et al. 2022; L. Breiman 2001; R. Tibshirani 1996; J. Platt 1999.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import SelectorMixin, VarianceThreshold
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LassoCV
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.svm import SVC

from tmi.toolkit.compute.silence import Ignored, quiet
from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import UsageError


class LassoSelection(SelectorMixin, BaseEstimator):
    """Selects the features with a nonzero LASSO coefficient, at least one."""

    def __init__(self, inner_folds: int = 5, seed: int = 0) -> None:
        self.inner_folds = inner_folds
        self.seed = seed

    def fit(self, X: Float[np.ndarray, "N F"], y: Int[np.ndarray, " N"]) -> LassoSelection:
        """Choose the penalty by cross-validation and select the features."""
        self.mask_ = np.zeros(X.shape[1], dtype=bool)
        if _minority_count(y) > 1:
            lasso = LassoCV(cv=_inner_cv(y, self.inner_folds, self.seed), random_state=self.seed, max_iter=2000)
            lasso.fit(X, np.asarray(y, dtype=np.float64))
            self.mask_ = lasso.coef_ != 0
        if not self.mask_.any():
            # the largest correlation with y enters the LASSO path first
            centred = X - X.mean(axis=0)
            self.mask_[np.argmax(np.abs(centred.T @ (y - y.mean())))] = True
        self.n_features_in_ = X.shape[1]
        return self

    def _get_support_mask(self) -> Any:
        return self.mask_


def support_vector_machine(config: Config) -> Any:
    """Unfitted support vector machine pipeline with Platt scaling over the whole pipeline."""
    sizes, seed = config.system.radiomics_model, config.train.seed
    return CalibratedClassifierCV(
        _pipeline(config, SVC(C=sizes.svc_c, kernel="rbf", gamma="scale", class_weight="balanced")),
        method="sigmoid",
        ensemble=False,
        cv=StratifiedKFold(sizes.inner_folds, shuffle=True, random_state=seed),
    )


def random_forest(config: Config) -> Any:
    """Unfitted random forest pipeline."""
    sizes, seed = config.system.radiomics_model, config.train.seed
    return _pipeline(
        config, RandomForestClassifier(n_estimators=sizes.trees, class_weight="balanced", random_state=seed, n_jobs=1)
    )


def fit(model: Any, features_NF: Float[np.ndarray, "N F"], labels_N: Int[np.ndarray, " N"]) -> Any:
    """Fit the model and return it; the number of inner folds is capped by the size of the rarer class.

    Raises:
        UsageError: the model needs inner folds, and a class has one case only.
    """
    if isinstance(model, CalibratedClassifierCV | GridSearchCV):
        if _minority_count(labels_N) < 2:
            raise UsageError(
                "the training part of a fold has 1 case of a class, too few for the inner folds of this model",
                fix="give a larger cohort, or more folds: --folds N",
            )
        model = model.set_params(cv=_inner_cv(labels_N, model.cv.n_splits, model.cv.random_state))
    with _quiet():
        return model.fit(features_NF, labels_N)


def _pipeline(config: Config, estimator: Any) -> Any:
    sizes, seed = config.system.radiomics_model, config.train.seed
    return Pipeline(
        [
            ("impute", SimpleImputer(strategy="median", keep_empty_features=True)),
            ("scale", MinMaxScaler((-1.0, 1.0), clip=True)),
            ("constants", VarianceThreshold()),
            ("select", LassoSelection(sizes.inner_folds, seed)),
            ("estimate", estimator),
        ]
    )


def _inner_cv(labels_N: Int[np.ndarray, " N"], folds: int, seed: int) -> Any:
    return StratifiedKFold(max(2, min(folds, _minority_count(labels_N))), shuffle=True, random_state=seed)


def _minority_count(labels_N: Int[np.ndarray, " N"]) -> int:
    """Number of cases of the rarer class."""
    return int(np.bincount(np.asarray(labels_N, dtype=np.int64), minlength=2).min())


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences convergence warnings: some penalties of the path do not converge on few cases; the score picks one."""
    with quiet([Ignored(category=ConvergenceWarning)]):
        yield
