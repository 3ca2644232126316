"""Fixtures of the GPU tests, which `make test-gpu` runs. On a machine without a GPU they are skipped with a reason."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from factories.random_run import write_random_run
from tmi.runtime.engines.nvidia_driver import find_gpu
from tmi.runtime.engines.registry import ENGINES
from tmi.toolkit.config.presets import tiny


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and find_gpu() is None:
        pytest.skip("no NVIDIA GPU with its driver on this machine")


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_run(tmp_path_factory.mktemp("gpu") / "run", tiny(), folds=2)


@pytest.fixture(scope="session")
def graph_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path) -> Path:
    """A bundle with ONNX and TorchScript graphs and typed FP16 graphs; no TensorRT is needed for these."""
    from tmi.export.bundle.writer import export_run

    folder = tmp_path_factory.mktemp("gpu") / "graphs"
    export_run(tiny_run, folder, artefacts=("onnx", "torchscript", "trt"))
    return folder


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path):
    """Function from an engine's name to a bundle with its FP16 plans, exported and validated on this GPU once."""
    from tmi.export.bundle.context import ExportSettings
    from tmi.export.bundle.writer import export_run
    from tmi.export.tensorrt.builder import TARGETS, BuildOptions

    bundles: dict[str, Path] = {}

    def bundle(name: str) -> Path:
        package = ENGINES[name].package
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the package {package} is not installed")
        if name not in bundles:
            bundles[name] = tmp_path_factory.mktemp("gpu") / name
            gpu = find_gpu()
            assert gpu is not None
            target = gpu.target if name == "trt-rtx" else None
            if target is not None and target not in TARGETS:
                pytest.skip(f"TensorRT-RTX builds for {', '.join(TARGETS)}, and this GPU is {target}")
            settings = ExportSettings(options=BuildOptions(target=target))
            export_run(tiny_run, bundles[name], artefacts=(name,), settings=settings)
        return bundles[name]

    return bundle
