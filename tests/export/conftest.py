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
from tmi.toolkit.config import Config


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Networks this small are slower on two threads, and much slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tmi.runtime.graph_engine.available_cores", lambda: 1)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def nano_config() -> Config:
    return nano()


@pytest.fixture(scope="session")
def nano_run(tmp_path_factory: pytest.TempPathFactory, nano_config: Config) -> Path:
    """A finished run of two folds that share nothing; read only."""
    return write_random_run(tmp_path_factory.mktemp("nano") / "run", nano_config, folds=2, seed=5)


@pytest.fixture(scope="session")
def nano_bundle(tmp_path_factory: pytest.TempPathFactory, nano_run: Path) -> Path:
    """That run exported as ONNX and TorchScript; read only."""
    from tmi.export.bundle_writer import export_run

    folder = tmp_path_factory.mktemp("nano") / "bundle"
    export_run(nano_run, folder, artefacts=("onnx", "torchscript"))
    return folder


@pytest.fixture(scope="session")
def shared_workbench(tmp_path_factory: pytest.TempPathFactory, nano_run: Path, nano_bundle: Path) -> Workbench:
    """Everything that faults need, but a folder of their own."""
    from tmi.export.bundle_writer import export_run

    folder = tmp_path_factory.mktemp("workbench")
    other_run = write_random_run(folder / "other-run", nano(), folds=2, seed=6)
    export_run(other_run, folder / "other-bundle", artefacts=("onnx",))
    return make_workbench(folder, nano_run, nano_bundle, folder / "other-bundle")


@pytest.fixture
def workbench(shared_workbench: Workbench, tmp_path: Path) -> Workbench:
    """The same with an empty folder."""
    return replace(shared_workbench, folder=tmp_path)
