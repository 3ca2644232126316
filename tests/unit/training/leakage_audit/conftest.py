"""Fixtures of the audit's tests: a cohort, a clean run on it, and a copy to change."""

from __future__ import annotations

import shutil
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
    return train(cohort, cohort.parent / "clean")


@pytest.fixture
def copy(clean: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "run"))
