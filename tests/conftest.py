"""Fixtures shared by all test folders. The functions that build their data are in `tests/factories`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from factories.paths import ROOT
from tmi.toolkit.config.presets import tiny
from tmi.toolkit.config.schema import Config, CtConfig
from tmi.toolkit.storage.hashing import sha256_bytes


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Cache folder of the session: each bundle runs its self-test once, and the user's cache and state are not used."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMI_CACHE", str(folder))
        patch.setenv("TMI_STATE", str(tmp_path_factory.mktemp("state")))
        for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR"):  # pytest-xdist sets COLUMNS
            patch.delenv(name, raising=False)
        yield folder


@pytest.fixture(autouse=True)
def own_state(monkeypatch: pytest.MonkeyPatch, session_cache: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """A test has its own record of accepted bundles, and leaves torch's number of threads as it was."""
    name = sha256_bytes(request.node.nodeid.encode())[:16]
    monkeypatch.setenv("TMI_STATE", str(session_cache.parent / "states" / name))
    torch = sys.modules.get("torch")
    threads = None if torch is None else torch.get_num_threads()
    yield
    if torch is not None:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def engines_in_table_order() -> Iterator[None]:
    """`auto` takes the first engine of the table that runs here, on every machine and without timing the engines."""
    from factories.engine_times import in_table_order

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tmi.runtime.serving.startup.measure_engines", in_table_order)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real images and tables, which are not in the repository; tests are skipped if it is missing."""
    folder = Path(os.environ.get("TMI_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real test data not found at {folder}; set TMI_TEST_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def micro_config() -> Config:
    """The preset `tiny` with a smaller CT volume."""
    return replace(tiny(), ct=CtConfig(shape_DHW=(12, 24, 24)))


@pytest.fixture(scope="session")
def synthetic_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight synthetic cases with extracted radiomics; read-only."""
    from tmi.toolkit.synthetic.cohort import make_cohort

    folder = tmp_path_factory.mktemp("synthetic") / "cohort"
    make_cohort(folder, cases=8, seed=7)
    return folder


@pytest.fixture(scope="session")
def random_run(tmp_path_factory: pytest.TempPathFactory, micro_config: Config) -> Path:
    """A finished run of `micro_config` with two folds and random weights; read-only."""
    from factories.random_run import write_random_run

    folder = tmp_path_factory.mktemp("runs") / "random"
    write_random_run(folder, micro_config, folds=2, seed=0)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, random_run: Path) -> Path:
    """`random_run` exported as ONNX and TorchScript, for every CPU engine; read-only."""
    from tmi.export.bundle.writer import export_run

    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    export_run(random_run, folder, artefacts=("onnx", "torchscript"))
    return folder


@pytest.fixture(scope="session")
def nano_config() -> Config:
    """The smallest network, for tests that export."""
    from factories.nano import nano

    return nano()


@pytest.fixture(scope="session")
def nano_run(tmp_path_factory: pytest.TempPathFactory, nano_config: Config) -> Path:
    """A finished run of `nano_config` with two folds that share no encoder; read-only."""
    from factories.random_run import write_random_run

    return write_random_run(tmp_path_factory.mktemp("nano") / "run", nano_config, folds=2, seed=5)


@pytest.fixture(scope="session")
def nano_bundle(tmp_path_factory: pytest.TempPathFactory, nano_run: Path) -> Path:
    """`nano_run` exported as ONNX and TorchScript on one thread, as the export tests run; read-only."""
    import torch

    from tmi.export.bundle.writer import export_run

    folder = tmp_path_factory.mktemp("nano") / "bundle"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tmi.runtime.engines.graph_engine.available_cores", lambda: 1)
        export_run(nano_run, folder, artefacts=("onnx", "torchscript"))
    torch.set_num_threads(before)
    return folder


@pytest.fixture(scope="session")
def trusted_bundle(tmp_path_factory: pytest.TempPathFactory, nano_bundle: Path, synthetic_cohort: Path) -> Path:
    """`nano_bundle` with trust statistics of `synthetic_cohort`, whose cases are like its training cases; read-only."""
    from factories.trust import bundle_with_trust

    return bundle_with_trust(nano_bundle, tmp_path_factory.mktemp("trusted") / "bundle", [synthetic_cohort])
