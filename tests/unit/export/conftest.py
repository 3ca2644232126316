"""Fixtures of the export tests: one thread for all engines, and the workbench for planted faults."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from factories.cached_traces import use_cached_traces
from factories.nano import nano
from factories.planted_faults import Workbench, make_workbench
from factories.random_run import write_random_run


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Run torch and all engines on one thread: networks this small are slower on two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tmi.runtime.engines.graph_engine.available_cores", lambda: 1)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_workbench(tmp_path_factory: pytest.TempPathFactory, nano_run: Path, nano_bundle: Path) -> Workbench:
    """The runs, bundles, keys and cases that faults are planted into, shared by all tests."""
    from tmi.export.bundle.writer import export_run

    folder = tmp_path_factory.mktemp("workbench")
    other_run = write_random_run(folder / "other-run", nano(), folds=2, seed=6)
    with pytest.MonkeyPatch.context() as patch:
        use_cached_traces(patch, nano_bundle)
        export_run(other_run, folder / "other-bundle", artefacts=("onnx",))
    return make_workbench(folder, nano_run, nano_bundle, folder / "other-bundle")


@pytest.fixture
def workbench(shared_workbench: Workbench, tmp_path: Path) -> Workbench:
    """The shared workbench with an empty folder of this test."""
    return replace(shared_workbench, folder=tmp_path)
