"""A network cut to the bone, so that an export takes seconds; the same classes and the same code path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from factories.random_run import write_random_run
from tmi.toolkit.config import (
    ClinicalConfig,
    Config,
    CtConfig,
    CtEncoderConfig,
    FusionConfig,
    HeadConfig,
    NetworkConfig,
    RadiomicsEncoderConfig,
    TextEncoderConfig,
)
from tmi.toolkit.presets import tiny


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
    return replace(
        tiny(),
        ct=CtConfig(shape_DHW=(8, 16, 16)),
        clinical=ClinicalConfig(max_length=40, vocab_size=256),
        network=NetworkConfig(
            ct_encoder=CtEncoderConfig(block="basic", layers=(1, 1, 1, 1), planes=(4, 8, 8, 8)),
            text_encoder=TextEncoderConfig(hidden_size=16, layers=1, heads=2, intermediate_size=16, vocab_size=256),
            radiomics_encoder=RadiomicsEncoderConfig(hidden=16, out=8),
            fusion=FusionConfig(width=16, ima_heads=2),
            head=HeadConfig(blocks=(1, 1), growth=4, init_features=4),
        ),
    )


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
