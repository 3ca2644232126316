"""Files are fetched before they are read, and the memory of a case is the next one's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tmi.toolkit.cases.case import CT_FILE, MASK_FILE, Case
from tmi.toolkit.compute import buffer_pool as recycled_memory
from tmi.toolkit.compute.buffer_pool import BufferPool


def test_fetching_a_case_asks_the_system_for_its_images_and_minds_none_that_is_missing(
    predictor, good_cases, tmp_path, monkeypatch
):
    asked: list[str] = []

    def advise(descriptor: int, offset: int, length: int, advice: int) -> None:
        assert (offset, length, advice) == (0, 0, os.POSIX_FADV_WILLNEED)
        asked.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    monkeypatch.setattr(os, "posix_fadvise", advise)
    folder = good_cases[0]
    predictor._reader.fetch(Case(folder=folder, case_id=folder.name))
    assert asked == [CT_FILE, MASK_FILE]
    predictor._reader.fetch(Case(folder=tmp_path, case_id="nothing there"))


@pytest.mark.parametrize("batch", [1, 2])
def test_memory_that_is_used_again_changes_no_answer_and_no_case_that_someone_keeps(
    predictor, good_cases, monkeypatch, batch
):
    cases = [Case(folder=path, case_id=path.name) for path in good_cases]
    memory = BufferPool()
    monkeypatch.setattr(predictor._reader, "memory", memory)
    monkeypatch.setattr(recycled_memory, "MIN_POOLED_BYTES", 2**62)
    wanted = predictor.predict(cases, batch=batch)
    assert memory.free_bytes == 0
    monkeypatch.setattr(recycled_memory, "MIN_POOLED_BYTES", 1)
    asked: list[int] = []
    empty = memory.empty

    def counted(shape, dtype):
        array = empty(shape, dtype)
        asked.append(array.nbytes)
        return array

    monkeypatch.setattr(memory, "empty", counted)
    kept = predictor._reader.read(cases[0], lambda text: None)
    before = kept.case.ct_1DHW.copy()
    for _ in range(3):
        assert [a.probability for a in predictor.predict(cases, batch=batch)] == [a.probability for a in wanted]
    assert memory.free_bytes > 0, "the CTs came from it, and are done with"
    assert memory.free_bytes < sum(asked) / 3, "and they shared it"
    assert (kept.case.ct_1DHW == before).all()
