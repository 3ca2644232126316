"""Fixtures of the training tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from factories.small_comparison import Comparison, compare_everything


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the trained comparison are `long`: it trains 21 rows."""
    for item in items:
        if "small_comparison" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="module", autouse=True)
def default_thread_count() -> Iterator[None]:
    """Set the number of torch threads that a fresh process has, so that results can be compared bit for bit.

    Inference engines of other tests change the number for the whole process.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def small_comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """All rows of the paper's tables, trained for one epoch in two folds; read-only."""
    return compare_everything(tmp_path_factory.mktemp("comparison"))
