"""A network cut to the bone, exported once; and the workbench that faults are planted on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from factories.nano import nano
from factories.planted_faults import Workbench, make_workbench
from factories.random_run import write_random_run
from factories.traced_once import use_cached_traces


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Networks this small are slower on two threads, and much slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tmi.runtime.engines.graph_engine.available_cores", lambda: 1)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_workbench(tmp_path_factory: pytest.TempPathFactory, nano_run: Path, nano_bundle: Path) -> Workbench:
    """Everything that faults need, but a folder of their own."""
    from tmi.export.bundle.writer import export_run

    folder = tmp_path_factory.mktemp("workbench")
    other_run = write_random_run(folder / "other-run", nano(), folds=2, seed=6)
    with pytest.MonkeyPatch.context() as patch:
        use_cached_traces(patch, nano_bundle)
        export_run(other_run, folder / "other-bundle", artefacts=("onnx",))
    return make_workbench(folder, nano_run, nano_bundle, folder / "other-bundle")


@pytest.fixture
def workbench(shared_workbench: Workbench, tmp_path: Path) -> Workbench:
    """The same with an empty folder."""
    return replace(shared_workbench, folder=tmp_path)
