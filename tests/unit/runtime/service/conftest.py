"""A predictor, and a service that runs with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from factories.service import Client, running_service
from tmi.runtime import Predictor


@pytest.fixture(scope="session")
def nano_predictor(nano_bundle: Path) -> Iterator[Predictor]:
    """The smallest bundle on ONNX Runtime."""
    with Predictor.open(nano_bundle, engine="onnx", threads=1) as predictor:
        yield predictor


@pytest.fixture(scope="module")
def client(nano_predictor: Predictor) -> Iterator[Client]:
    """Requests to a service with the default settings."""
    with running_service(nano_predictor) as client:
        yield client
