"""Stores fitted scikit-learn pipelines as plain arrays in a safetensors file, and predicts from these arrays alone.

Nothing is pickled, so reading a run executes no code. N cases, F features, S selected features, V support vectors,
T trees. The prediction matches scikit-learn's to 1e-12.

    x = clip((where(nan, median, v) * scale + shift), -1, 1)[selected]
    svm:  d = sum_v dual_v exp(-gamma |x - v|^2) + intercept;   P(bad) = 1 / (1 + exp(a d + b))
    logreg: P(bad) = 1 / (1 + exp(-(x . weight + intercept)))
    rf:   each tree goes left if float32(x_f) <= threshold;  P(bad) = mean over the trees of the leaf's share of bad
    boosting:     goes left if v_f <= threshold, or where the node says so if v_f is missing;
                  P(bad) = 1 / (1 + exp(-(baseline + sum over the trees of the leaf's value)))
    late-fusion:  mean of a `clinical.` and a `radiomics.` pipeline, on the columns before the last 1,781 and on those
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from tmi.toolkit.config.schema import N_RADIOMICS, POSITIVE
from tmi.toolkit.errors import DamagedError
from tmi.toolkit.storage.atomic_files import follow_umask
from tmi.toolkit.storage.bounded_files import WEIGHTS_BYTES, require_bounded

Arrays = dict[str, np.ndarray]
CLINICAL_PART, RADIOMICS_PART = "clinical.", "radiomics."
"""Prefixes of the arrays of a late fusion's two pipelines."""


def as_arrays(model: Any) -> Arrays:
    """Arrays of a fitted model of `radiomics_pipeline`, `clinical_pipeline` or `joint_pipeline`."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.ensemble import HistGradientBoostingClassifier

    from tmi.training.systems.joint_pipeline import LateFusion

    if isinstance(model, LateFusion):
        parts = {CLINICAL_PART: as_arrays(model.clinical_), RADIOMICS_PART: as_arrays(model.radiomics_)}
        return {f"{part}{name}": array for part, arrays in parts.items() for name, array in arrays.items()}
    if isinstance(model, HistGradientBoostingClassifier):
        return _boosting(model)
    model = getattr(model, "best_estimator_", model)  # set by GridSearchCV
    calibrated = isinstance(model, CalibratedClassifierCV)
    pipeline = model.calibrated_classifiers_[0].estimator if calibrated else model
    steps = pipeline.named_steps
    varying = np.flatnonzero(steps["constants"].get_support())
    arrays: Arrays = {
        "median": np.asarray(steps["impute"].statistics_, dtype=np.float64),
        "scale": np.asarray(steps["scale"].scale_, dtype=np.float64),
        "shift": np.asarray(steps["scale"].min_, dtype=np.float64),
        "selected": (varying[steps["select"].get_support()] if "select" in steps else varying).astype(np.int64),
    }
    estimator = steps["estimate"]
    if calibrated:
        sigmoid = model.calibrated_classifiers_[0].calibrators[0]
        return arrays | {
            "svc.support": np.ascontiguousarray(estimator.support_vectors_, dtype=np.float64),
            "svc.dual": np.ascontiguousarray(estimator.dual_coef_[0], dtype=np.float64),
            "svc.intercept": np.asarray(estimator.intercept_, dtype=np.float64),
            "svc.gamma": np.array([estimator._gamma], dtype=np.float64),
            "platt": np.array([sigmoid.a_, sigmoid.b_], dtype=np.float64),
        }
    if hasattr(estimator, "coef_"):
        return arrays | {
            "logistic.weight": np.ascontiguousarray(estimator.coef_[0], dtype=np.float64),
            "logistic.intercept": np.asarray(estimator.intercept_, dtype=np.float64),
        }
    return arrays | _forest(estimator)


def _forest(estimator: Any) -> Arrays:
    # all trees in one table of nodes: children are offset by the start of their tree
    trees = [e.tree_ for e in estimator.estimators_]
    starts = np.cumsum([0, *(t.node_count for t in trees)])
    positive = list(estimator.classes_).index(POSITIVE)
    share = [t.value[:, 0, positive] / t.value[:, 0, :].sum(axis=1) for t in trees]
    return {
        "tree.start": starts[:-1].astype(np.int64),
        "tree.feature": np.concatenate([t.feature for t in trees]).astype(np.int64),
        "tree.threshold": np.concatenate([t.threshold for t in trees]).astype(np.float64),
        "tree.left": np.concatenate([t.children_left + s for t, s in zip(trees, starts, strict=False)]).astype(
            np.int64
        ),
        "tree.right": np.concatenate([t.children_right + s for t, s in zip(trees, starts, strict=False)]).astype(
            np.int64
        ),
        "tree.leaf": np.concatenate([t.children_left < 0 for t in trees]).astype(np.int64),
        "tree.share": np.concatenate(share).astype(np.float64),
    }


def _boosting(model: Any) -> Arrays:
    # scikit-learn has no public access to these trees; the equality test fails if a version stores them otherwise
    trees = [stage[0].nodes for stage in model._predictors]
    starts = np.cumsum([0, *(len(t) for t in trees)])
    nodes = np.concatenate(trees)
    offset = np.repeat(starts[:-1], [len(t) for t in trees])
    return {
        "boosting.baseline": np.asarray(model._baseline_prediction, dtype=np.float64).reshape(1),
        "boosting.value": nodes["value"].astype(np.float64),
        "boosting.missing_left": nodes["missing_go_to_left"].astype(np.int64),
        "tree.start": starts[:-1].astype(np.int64),
        "tree.feature": nodes["feature_idx"].astype(np.int64),
        "tree.threshold": nodes["num_threshold"].astype(np.float64),
        "tree.left": (nodes["left"] + offset).astype(np.int64),
        "tree.right": (nodes["right"] + offset).astype(np.int64),
        "tree.leaf": nodes["is_leaf"].astype(np.int64),
    }


def selected_features(arrays: Mapping[str, np.ndarray]) -> int:
    """Number of features that the stored model reads."""
    if "boosting.value" in arrays:
        return len(np.unique(arrays["tree.feature"][arrays["tree.leaf"] == 0]))
    return sum(len(array) for name, array in arrays.items() if name.rpartition(".")[2] == "selected")


def probability(arrays: Mapping[str, np.ndarray], features_NF: Float[np.ndarray, "N F"]) -> Float[np.ndarray, " N"]:
    """Probability of the positive class, float64, from unscaled features with NaN where missing."""
    if f"{RADIOMICS_PART}selected" in arrays:
        parts = (
            probability(_part(arrays, CLINICAL_PART), features_NF[:, :-N_RADIOMICS]),
            probability(_part(arrays, RADIOMICS_PART), features_NF[:, -N_RADIOMICS:]),
        )
        mean: np.ndarray = (parts[0] + parts[1]) / 2.0
        return mean
    if "boosting.value" in arrays:
        leaf_NT = _leaves(arrays, features_NF, arrays["boosting.missing_left"])
        raw_N = arrays["boosting.baseline"] + arrays["boosting.value"][leaf_NT].sum(axis=1)
        boosted: np.ndarray = 1.0 / (1.0 + np.exp(-raw_N))
        return boosted
    filled = np.where(np.isnan(features_NF), arrays["median"], features_NF)
    x_NS = np.clip(filled * arrays["scale"] + arrays["shift"], -1.0, 1.0)[:, arrays["selected"]]
    if "logistic.weight" in arrays:
        decision_N = x_NS @ arrays["logistic.weight"] + arrays["logistic.intercept"]
        scores: np.ndarray = 1.0 / (1.0 + np.exp(-decision_N))
        return scores
    return _svm(arrays, x_NS) if "svc.dual" in arrays else _trees(arrays, x_NS)


def _svm(arrays: Mapping[str, np.ndarray], x_NS: Float[np.ndarray, "N S"]) -> Float[np.ndarray, " N"]:
    distance_NV = ((x_NS[:, None, :] - arrays["svc.support"][None, :, :]) ** 2).sum(axis=2)
    decision = np.exp(-arrays["svc.gamma"] * distance_NV) @ arrays["svc.dual"] + arrays["svc.intercept"]
    a, b = arrays["platt"]
    scores: np.ndarray = 1.0 / (1.0 + np.exp(a * decision + b))
    return scores


def _part(arrays: Mapping[str, np.ndarray], prefix: str) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _trees(arrays: Mapping[str, np.ndarray], x_NS: Float[np.ndarray, "N S"]) -> Float[np.ndarray, " N"]:
    # scikit-learn's trees compare float32 features with float64 thresholds
    leaf_NT = _leaves(arrays, x_NS.astype(np.float32), np.zeros(len(arrays["tree.leaf"]), dtype=np.int64))
    share: np.ndarray = arrays["tree.share"][leaf_NT].mean(axis=1)
    return share


def _leaves(
    arrays: Mapping[str, np.ndarray], x_NS: Float[np.ndarray, "N S"], missing_left: Int[np.ndarray, " M"]
) -> Int[np.ndarray, "N T"]:
    """Leaf of each case in each tree; a missing value goes to the side that the node names (M nodes)."""
    rows = np.arange(len(x_NS))[:, None]
    node_NT = np.repeat(arrays["tree.start"][None, :], len(x_NS), axis=0)
    # all cases descend all trees together, one level a turn; leaves stay where they are
    while not (leaf := arrays["tree.leaf"][node_NT].astype(bool)).all():
        value = x_NS[rows, np.where(leaf, 0, arrays["tree.feature"][node_NT])]
        left = (value <= arrays["tree.threshold"][node_NT]) | (np.isnan(value) & (missing_left[node_NT] == 1))
        child_NT = np.where(left, arrays["tree.left"][node_NT], arrays["tree.right"][node_NT])
        node_NT = np.where(leaf, node_NT, child_NT)
    return node_NT


def save(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Write the arrays to a safetensors file."""
    save_file(dict(arrays), path)
    follow_umask(path)


def load(path: Path) -> Arrays:
    """Read the arrays of a safetensors file.

    Raises:
        DamagedError: the file is missing or is not a safetensors file.
    """
    try:
        require_bounded(path, max_bytes=WEIGHTS_BYTES)
        arrays: Arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DamagedError(f"model {path} cannot be read", fix="restore the run, or train it again") from error
    return arrays
