"""scikit-learn pipelines on the clinical values as plain numbers: baselines for the text encoder.

    median imputation -> scaling to [-1, 1], clipped -> removal of constant columns -> estimator

`logreg`: the L2 penalty is chosen by stratified cross-validation inside the training part. `clinical-rf`: 500 trees
(100 in `tiny`). Classes are not reweighted, as in the networks' cross entropy. Source: J. Friedman, T. Hastie,
R. Tibshirani, The Elements of Statistical Learning, 2009.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_selection import VarianceThreshold
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler

from tmi.toolkit.config.schema import Config

PENALTIES = np.logspace(-2, 3, 11)
"""Candidate inverse strengths of the L2 penalty."""


def logistic_regression(config: Config) -> Any:
    """Unfitted logistic regression pipeline; the penalty is searched by log loss over inner folds."""
    inner = StratifiedKFold(config.system.radiomics_model.inner_folds, shuffle=True, random_state=config.train.seed)
    return GridSearchCV(
        _pipeline(LogisticRegression(max_iter=5000)),
        {"estimate__C": PENALTIES},
        scoring="neg_log_loss",
        cv=inner,
        n_jobs=1,
    )


def random_forest(config: Config) -> Any:
    """Unfitted random forest pipeline."""
    sizes = config.system.radiomics_model
    return _pipeline(
        RandomForestClassifier(n_estimators=sizes.trees, min_samples_leaf=3, random_state=config.train.seed, n_jobs=1)
    )


def _pipeline(estimator: Any) -> Any:
    return Pipeline(
        [
            ("impute", SimpleImputer(strategy="median", keep_empty_features=True)),
            ("scale", MinMaxScaler((-1.0, 1.0), clip=True)),
            ("constants", VarianceThreshold()),
            ("estimate", estimator),
        ]
    )
