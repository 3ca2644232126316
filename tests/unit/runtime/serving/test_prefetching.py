"""Prefetching: read-ahead of image files, and reuse of pooled memory between cases."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tmi.runtime.serving.pipeline import InferencePipeline
from tmi.runtime.serving.prefetching import fetch_images
from tmi.toolkit.cases.case import CT_FILE, MASK_FILE, Case
from tmi.toolkit.compute import buffer_pool as buffer_pool
from tmi.toolkit.compute.buffer_pool import BufferPool


def test_fetch_requests_images_and_ignores_missing_files(good_cases, tmp_path, monkeypatch):
    """Fetching a case advises the operating system of its images; missing files raise no error."""
    advised: list[str] = []

    def advise(descriptor: int, offset: int, length: int, advice: int) -> None:
        assert (offset, length, advice) == (0, 0, os.POSIX_FADV_WILLNEED)
        advised.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    monkeypatch.setattr(os, "posix_fadvise", advise)
    folder = good_cases[0]
    fetch_images(Case(folder=folder, case_id=folder.name))
    assert advised == [CT_FILE, MASK_FILE]
    fetch_images(Case(folder=tmp_path, case_id="missing"))


@pytest.mark.parametrize("batch", [1, 2])
def test_pooled_memory_changes_no_result(opened, predictor, good_cases, monkeypatch, batch):
    """Reused buffers change neither a prediction nor the arrays of a case that is still referenced."""
    cases = [Case(folder=path, case_id=path.name) for path in good_cases]
    expected = predictor.predict(cases, batch=batch)
    monkeypatch.setattr(buffer_pool, "MIN_POOLED_BYTES", 1)
    memory, allocated = BufferPool(), []

    def counted(shape, dtype):
        array = memory.empty(shape, dtype)
        allocated.append(array.nbytes)
        return array

    pooled = InferencePipeline(opened.bundle, opened.engine, empty=counted)
    retained = pooled.prepare(cases[0])
    before = retained.ct_1DHW.copy()
    for _ in range(3):
        results = opened.predictor(prepare=pooled.prepare, collate=pooled.collate).predict(cases, batch=batch)
        assert [a.probability for a in results] == [a.probability for a in expected]
    assert memory.free_bytes > 0, "the CTs were allocated from the pool and released"
    assert memory.free_bytes < sum(allocated) / 3, "buffers were shared between cases"
    assert (retained.ct_1DHW == before).all()
