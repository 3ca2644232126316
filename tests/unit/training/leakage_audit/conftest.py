"""Fixtures of the audit's tests: a cohort, a clean run on it, and a copy to change."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from factories.audited_run import train, two_cases_a_patient
from factories.cases import write_cohort


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_cohort(tmp_path_factory.mktemp("audit") / "cohort", cases=20, with_mask=False)
    two_cases_a_patient(folder)
    return folder


@pytest.fixture(scope="session")
def clean(cohort: Path) -> Path:
    with one_thread():
        return train(cohort, cohort.parent / "clean")


@contextmanager
def one_thread() -> Iterator[None]:
    """A replay compares the number of threads with the recorded one, whatever ran before in this process."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def copy(clean: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "run"))
