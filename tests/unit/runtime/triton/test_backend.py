"""The model of Triton's Python backend, with a stand-in for Triton's own module."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from factories.service import files_of
from tmi.runtime import Prediction, Predictor
from tmi.runtime.triton.backend import TRITON_MODULE, TritonPythonModel
from tmi.runtime.triton.repository import RepositorySettings, write_repository
from tmi.toolkit.radiomics.table import read_table


class _Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class _Error:
    INVALID_ARG, INTERNAL = "INVALID_ARG", "INTERNAL"

    def __init__(self, message: str, code: str) -> None:
        self.message, self.code = message, code


class _Request:
    """A request of the outputs `wanted`."""

    def __init__(self, inputs: dict[str, np.ndarray], wanted: tuple[str, ...]) -> None:
        self.inputs = {name: _Tensor(name, array) for name, array in inputs.items()}
        self._wanted = wanted

    def parameters(self) -> str:
        return "{}"

    def requested_output_names(self) -> tuple[str, ...]:
        return self._wanted


@pytest.fixture
def log() -> list[str]:
    """Lines that the model logs."""
    return []


@pytest.fixture
def model(nano_bundle, tmp_path, monkeypatch, log):
    """A loaded model of a written repository."""

    def response(output_tensors, error=None):
        return SimpleNamespace(tensors={t.name(): t.as_numpy() for t in output_tensors}, error=error)

    triton = SimpleNamespace(
        Logger=SimpleNamespace(log_info=log.append, log_error=log.append),
        get_input_tensor_by_name=lambda request, name: request.inputs.get(name),
        Tensor=_Tensor, TritonError=_Error, InferenceResponse=response,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, TRITON_MODULE, triton)
    write_repository(nano_bundle, tmp_path, settings=RepositorySettings(engine="onnx", threads=1))
    loaded = TritonPythonModel()
    config = {
        "max_batch_size": 4,
        "parameters": {"engine": {"string_value": "onnx"}, "threads": {"string_value": "1"}},
    }
    loaded.initialize(
        {"model_config": json.dumps(config), "model_repository": str(tmp_path / "tmi"), "model_version": "1"}
    )
    yield loaded
    loaded.finalize()


def _request(folder, *, wanted=("probability", "fold_probability", "decision", "case_id"), **changed) -> _Request:
    inputs = {name: np.array([[data]], dtype=np.object_) for name, data in files_of(folder).items()}
    inputs["radiomics"] = read_table(folder / "radiomics.csv", case_id=folder.name)[None].astype(np.float64)
    inputs["case_id"] = np.array([[folder.name.encode()]], dtype=np.object_)
    return _Request(inputs | changed, wanted)


def test_predictions_are_those_of_the_predictor(model, nano_bundle, good_cases):
    """Several requests at once: each response has its case's values to the last bit, and the wanted outputs alone."""
    responses = model.execute([_request(folder) for folder in good_cases[:3]])
    with Predictor.open(nano_bundle, engine="onnx", threads=1) as predictor:
        for folder, response in zip(good_cases, responses, strict=False):
            (result,) = predictor.predict(folder)
            assert isinstance(result, Prediction)
            assert response.error is None
            assert set(response.tensors) == {"probability", "fold_probability", "decision", "case_id"}
            assert response.tensors["probability"].tolist() == [list(result.probability.values())]
            assert response.tensors["fold_probability"].tolist() == [
                [list(fold.probability.values()) for fold in result.folds]
            ]
            assert response.tensors["decision"].ravel()[0] == result.decision.encode()
            assert response.tensors["case_id"].ravel()[0] == folder.name.encode()


def test_bad_case_fails_alone_with_its_code(model, good_cases, log):
    """The neighbours of a rejected case are predicted; the error has code and fix, and the log nothing of it."""
    bad = _request(good_cases[1], ct=np.array([[b"no image"]], dtype=np.object_))
    first, second, third = model.execute([_request(good_cases[0]), bad, _request(good_cases[2])])
    assert (first.error, third.error) == (None, None)
    assert "[ct-unreadable]; fix: " in second.error.message
    assert second.error.code == "INVALID_ARG"
    assert not any("ct-unreadable" in line or good_cases[1].name in line for line in log)


def test_missing_input_and_batch_of_cases_are_rejected(model, good_cases):
    """A request without a CT, and one that holds two cases, have errors of their own."""
    without = _request(good_cases[0])
    del without.inputs["ct"]
    two = _request(good_cases[0], ct=np.array([[b"a"], [b"b"]], dtype=np.object_))
    missing, batch = model.execute([without, two])
    assert missing.error is not None
    assert "[bad-request]" in batch.error.message
