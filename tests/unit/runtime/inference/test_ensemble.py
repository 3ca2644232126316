"""Numeric pipeline: how often each graph runs, which inputs it gets, and how folds become one probability."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from factories.numpy_engine import NumpyEngine, make_manifest
from tmi.runtime.inference.ensemble import fold_std, probabilities, run_folds, softmax


@dataclass(frozen=True)
class Tokens:
    input_ids_BT: np.ndarray
    attention_mask_BT: np.ndarray


def tokens(*first_ids: int, length: int = 4) -> Tokens:
    ids = np.zeros((len(first_ids), length), dtype=np.int64)
    ids[:, 0] = first_ids
    return Tokens(ids, (ids > 0).astype(np.int64))


def volumes(*levels: float) -> np.ndarray:
    return np.stack([np.full((1, 2, 2, 2), level, dtype=np.float32) for level in levels])


def test_shared_encoder_runs_once_per_batch():
    """Three folds with one text encoder run it once."""
    manifest = make_manifest([("ct-0", "text-0"), ("ct-1", "text-0"), ("ct-2", "text-0")])
    engine = NumpyEngine()
    run_folds(
        engine,
        manifest,
        ct_B1DHW=volumes(1.0, 2.0),
        texts={"text-0": tokens(3, 4)},
        radiomics_BFR=np.zeros((2, 3, 1781), dtype=np.float32),
    )
    assert sorted(engine.calls) == [("ct-0", 2), ("ct-1", 2), ("ct-2", 2), ("fusion", 2), ("text-0", 2)]


def test_each_fold_gets_its_own_features():
    """Fold f of the fusion input holds the features of fold f's encoders."""
    # The folds name their graphs in an order that is neither alphabetical nor the manifest's.
    manifest = make_manifest([("ct-1", "text-0"), ("ct-0", "text-1")])
    radiomics = np.zeros((2, 2, 1781), dtype=np.float32)
    radiomics[0, 0, 0], radiomics[1, 1, 0] = 100.0, 1000.0
    logits = run_folds(
        NumpyEngine(),
        manifest,
        ct_B1DHW=volumes(1.0, 2.0),
        texts={"text-0": tokens(3, 4), "text-1": tokens(5, 6, length=7)},
        radiomics_BFR=radiomics,
    )
    expected = [
        [[1.0 * 2, 3 * 1 + 100.0], [1.0 * 1, 5 * 2]],
        [[2.0 * 2, 4 * 1], [2.0 * 1, 6 * 2 + 1000.0]],
    ]
    np.testing.assert_array_equal(logits, np.asarray(expected, dtype=np.float32))


def test_softmax_is_float64_and_stable():
    """Large logits neither overflow nor lose their difference."""
    p = softmax(np.asarray([[1e4, 1e4 - 1.0], [-1e4, 0.0]], dtype=np.float32))
    assert p.dtype == np.float64
    assert p[0, 0] == pytest.approx(1 / (1 + np.exp(-1.0)), abs=1e-15)
    np.testing.assert_array_equal(p[1], [0.0, 1.0])


def test_probability_is_the_fold_mean():
    """The probability is the mean over folds, fold_std the population standard deviation, equal for both classes."""
    p_bad = np.asarray([[0.2, 0.6, 0.7]])
    logits = np.stack([np.zeros_like(p_bad), np.log(p_bad / (1 - p_bad))], axis=-1).astype(np.float32)
    np.testing.assert_allclose(probabilities(logits), [[0.5, 0.5]], atol=1e-7)
    np.testing.assert_allclose(fold_std(logits, positive=1), [np.std([0.2, 0.6, 0.7])], atol=1e-7)
    np.testing.assert_allclose(fold_std(logits, positive=0), fold_std(logits, positive=1), atol=1e-12)


def test_one_fold_has_zero_fold_std():
    """A single fold has no deviation."""
    assert fold_std(np.asarray([[[0.3, 0.9]]], dtype=np.float32), positive=1)[0] == 0.0
