"""Inference pipeline: a function of its batch, for the predictor and for any other caller."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tmi.runtime import Prediction, Predictor, RejectedCase
from tmi.toolkit.cases.case import Case, open_case
from tmi.toolkit.errors import UsageError


@pytest.fixture(scope="module")
def cases(good_cases, tmp_path_factory) -> list[Case]:
    """Four valid cases with two rejected ones between them."""
    broken = Path(shutil.copytree(good_cases[0], tmp_path_factory.mktemp("broken") / "broken"))
    (broken / "ct.nii.gz").write_bytes(b"no image")
    missing = Case(folder=broken / "nowhere", case_id="nowhere")
    return [missing, *map(open_case, good_cases[:2]), open_case(broken), *map(open_case, good_cases[2:])]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_run_predicts_what_the_predictor_does(opened, good_cases, size):
    """`run` on a batch gives the results of the predictor for such a round to the last bit, without their timing."""
    batch = [open_case(folder) for folder in good_cases[:size]]
    in_one_round = opened.on_cores(size).predict(batch, batch=size)
    for result, expected in zip(opened.pipeline.run(batch), in_one_round, strict=True):
        assert (result.folds, result.probability, result.warnings) == (
            expected.folds,
            expected.probability,
            expected.warnings,
        )
        assert (dict(result.seconds), dict(result.overlapped)) == ({}, {})


def test_failing_cases_change_no_neighbour(opened, cases):
    """The cases beside a rejected one have the same result to the last bit as in a batch without it."""
    pipeline = opened.pipeline
    results = pipeline.run(cases)
    assert [type(r) for r in results] == [RejectedCase, Prediction, Prediction, RejectedCase, Prediction, Prediction]
    assert [r.code for r in results if isinstance(r, RejectedCase)] == ["case-missing", "ct-unreadable"]
    valid = [case for case, result in zip(cases, results, strict=True) if isinstance(result, Prediction)]
    assert [r for r in results if isinstance(r, Prediction)] == pipeline.run(valid)


def test_batch_of_rejected_cases_needs_no_engine(opened, cases):
    """A batch without a valid case is returned without running the engine."""
    assert [r.code for r in opened.pipeline.run([cases[0]])] == ["case-missing"]
    assert opened.pipeline.run([]) == []


def test_pipeline_is_shared_by_threads(opened, cases):
    """Batches of different callers that run at the same time give the same results as one after the other."""
    pipeline = opened.pipeline
    batches = [cases[:3], cases[3:], cases[1:2], cases] * 3
    expected = [pipeline.run(batch) for batch in batches]
    with ThreadPoolExecutor(max_workers=4) as callers:
        assert list(callers.map(pipeline.run, batches)) == expected


def test_pipeline_and_predictor_name_bundle_and_engine(opened, predictor):
    """`repr` says what is open."""
    assert repr(opened.pipeline) == "InferencePipeline(tiny, 2 folds, onnx)"
    assert repr(predictor) == f"Predictor({str(opened.bundle.folder)!r}, engine='onnx')"


def test_caches_beside_a_pipeline_are_rejected(opened):
    """A predictor whose pipeline is given would not use its own caches, so it takes none."""
    with pytest.raises(UsageError, match="own caches"):
        Predictor(opened.bundle, opened.engine, opened.record, reuse=True, pipeline=opened.pipeline)


def test_exact_stream_encodes_each_text_alone(opened, good_cases):
    """With `exact`, a round of cases gives each the result of the case alone to the last bit: no text shares a call."""
    pipeline, sizes = opened.pipeline, []

    def encode_text(tokens):
        sizes.append(len(tokens))
        return pipeline.encode_text(tokens)

    results = list(opened.on_cores(4, encode_text=encode_text).stream(good_cases, exact=True))
    assert sizes == [1, 1, 1, 1]
    for folder, result in zip(good_cases, results, strict=True):
        (alone,) = pipeline.run([open_case(folder)])
        assert (result.folds, result.probability, result.spread) == (alone.folds, alone.probability, alone.spread)
    with pytest.raises(UsageError, match="computed together"):
        opened.predictor().stream(good_cases, batch=2, exact=True)
