"""scikit-learn models on clinical values and radiomics together: the simple baselines that a fusion network must beat.

    late-fusion   mean of two probabilities: `logreg` on the clinical values and `rf` on the radiomics
    boosting      histogram gradient boosting on both; splits have a side for missing values, so nothing is imputed

The features are the clinical values of the schema, then the 1,781 radiomics. Neither model sees the CT itself. Each
part of the late fusion is fitted alone, on the training part of the fold, and has the weight of 1/2: weights fitted on
tens of cases would be noise. Sources: J. Friedman 2001; G. Ke et al., LightGBM, 2017.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import HistGradientBoostingClassifier

from tmi.toolkit.config.schema import N_RADIOMICS, Config
from tmi.training.systems import clinical_pipeline, radiomics_pipeline


class LateFusion(ClassifierMixin, BaseEstimator):
    """Mean of the probabilities of a clinical and a radiomics model.

    Args:
        clinical: unfitted model of the clinical values, all columns before the last 1,781.
        radiomics: unfitted model of the radiomics, the last 1,781 columns.
    """

    def __init__(self, clinical: Any, radiomics: Any) -> None:
        self.clinical = clinical
        self.radiomics = radiomics

    def fit(self, X: Float[np.ndarray, "N F"], y: Int[np.ndarray, " N"]) -> LateFusion:
        """Fit both models.

        Raises:
            UsageError: a model needs inner folds, and a class has one case only.
        """
        self.clinical_ = radiomics_pipeline.fit(self.clinical, X[:, :-N_RADIOMICS], y)
        self.radiomics_ = radiomics_pipeline.fit(self.radiomics, X[:, -N_RADIOMICS:], y)
        self.classes_ = np.unique(y)
        self.n_features_in_ = X.shape[1]
        return self

    def predict_proba(self, X: Float[np.ndarray, "N F"]) -> Float[np.ndarray, "N K"]:
        """Probabilities of both classes."""
        clinical = self.clinical_.predict_proba(X[:, :-N_RADIOMICS])
        probability: np.ndarray = (clinical + self.radiomics_.predict_proba(X[:, -N_RADIOMICS:])) / 2.0
        return probability


class Boosting(HistGradientBoostingClassifier):
    """Gradient boosting that accepts a feature without any value; no split uses it."""

    def fit(self, X: Float[np.ndarray, "N F"], y: Int[np.ndarray, " N"]) -> Boosting:
        """Fit the trees."""
        # scikit-learn 1.9 cannot bin a column without a value; a constant column is never split
        fitted: Boosting = super().fit(np.where(np.isnan(X).all(axis=0), 0.0, X), y)
        return fitted


def late_fusion(config: Config) -> Any:
    """Unfitted late fusion of logistic regression and random forest."""
    return LateFusion(clinical_pipeline.logistic_regression(config), radiomics_pipeline.random_forest(config))


def boosting(config: Config) -> Any:
    """Unfitted gradient boosting. Its small trees and leaves of five cases suit some hundred cases.

    Early stopping would hold back a tenth of a fold's few training cases, so the number of trees is fixed: a fifth of
    the forest's.
    """
    return Boosting(
        max_iter=max(10, config.system.radiomics_model.trees // 5),
        learning_rate=0.05,
        max_leaf_nodes=6,
        min_samples_leaf=5,
        l2_regularization=1.0,
        early_stopping=False,
        random_state=config.train.seed,
    )
